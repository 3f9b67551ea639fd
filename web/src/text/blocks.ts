/**
 * Markdown cut into blocks that can be rendered one by one.
 *
 * While an answer is written only its end changes, so that a token costs one block, not the answer.
 * A block ends at a blank line, but not inside a fence, a formula or a list.
 */

const FENCE = /^\s*(`{3,}|~{3,})(.*)$/;
const ITEM = /^\s{0,3}(?:[-*+]|\d{1,9}[.)])\s/;
const INDENTED = /^(?: {2,}|\t)\S/;
const DEFINITION = /^ {0,3}\[[^\]\n]+\]:\s*\S/;

interface Open {
  /** What ends the part that no blank line ends. */
  closes: (line: string) => boolean;
}

/** The blocks of a text, in order; blank lines between blocks are dropped. */
export function splitBlocks(source: string): string[] {
  const blocks: string[] = [];
  let lines: string[] = [];
  let open: Open | null = null;
  let gap = 0; // blank lines since the last line

  const end = (): void => {
    if (lines.length > 0) blocks.push(lines.join('\n'));
    lines = [];
  };

  for (const line of source.replace(/\r\n?/g, '\n').split('\n')) {
    if (open !== null) {
      lines.push(line);
      if (open.closes(line)) open = null;
      continue;
    }
    if (line.trim() === '') {
      gap += 1;
      continue;
    }
    if (gap > 0) {
      if (continuesList(lines, line)) lines.push(...Array<string>(gap).fill(''));
      else end();
      gap = 0;
    }
    lines.push(line);
    open = opened(line);
  }
  end();
  return blocks;
}

/** The link definitions of a text, which may stand in another block than their use. */
export function definitions(source: string): string {
  if (!source.includes(']:')) return '';
  return source.split('\n').filter((line) => DEFINITION.test(line)).join('\n');
}

function continuesList(lines: readonly string[], next: string): boolean {
  const first = lines[0];
  return first !== undefined && ITEM.test(first) && (ITEM.test(next) || INDENTED.test(next));
}

function opened(line: string): Open | null {
  const fence = FENCE.exec(line.replace(ITEM, ''));
  if (fence !== null) {
    const mark = fence[1] ?? '';
    const rest = fence[2] ?? '';
    if (mark.startsWith('`') && rest.includes('`')) return null; // code within a line
    return { closes: (later) => isClosing(later, mark) };
  }
  const text = line.trim();
  if (text.startsWith('$$') && !text.slice(2).includes('$$')) {
    return { closes: (later) => later.includes('$$') };
  }
  if (text.startsWith('\\[') && !text.includes('\\]')) {
    return { closes: (later) => later.includes('\\]') };
  }
  return null;
}

function isClosing(line: string, mark: string): boolean {
  const text = line.trim();
  return text.length >= mark.length && text === mark.charAt(0).repeat(text.length);
}
