/**
 * TeX in Markdown: $x$, $$x$$, \(x\) and \[x\] become elements that math.ts fills.
 *
 * A dollar opens a formula only before something that is no space, and closes one only behind such
 * and not before a digit: "it costs $5 and $6" has none.
 */

import type MarkdownIt from 'markdown-it';

type Parser = InstanceType<typeof MarkdownIt>;

type InlineRule = Parameters<Parser['inline']['ruler']['push']>[1];
type BlockRule = Parameters<Parser['block']['ruler']['push']>[1];

interface Found {
  tex: string;
  display: boolean;
  /** Where the text goes on. */
  end: number;
}

/** The formula that begins at `start`, if one does and it is whole. */
export function formulaAt(source: string, start: number): Found | null {
  if (source.startsWith('$$', start)) return between(source, start, '$$', '$$', true);
  if (source.startsWith('\\[', start)) return between(source, start, '\\[', '\\]', true);
  if (source.startsWith('\\(', start)) return between(source, start, '\\(', '\\)', false);
  if (source[start] !== '$') return null;
  const found = between(source, start, '$', '$', false);
  if (found === null || /^\s|\s$|\n\s*\n/.test(found.tex)) return null;
  return /\d/.test(source[found.end] ?? '') ? null : found;
}

function between(
  source: string,
  start: number,
  opens: string,
  closes: string,
  display: boolean,
): Found | null {
  const from = start + opens.length;
  let to = source.indexOf(closes, from);
  while (to > 0 && closes.startsWith('$') && source[to - 1] === '\\') {
    to = source.indexOf(closes, to + 1);
  }
  if (to < 0) return null;
  const tex = source.slice(from, to);
  return tex.trim() === '' ? null : { tex, display, end: to + closes.length };
}

const inline: InlineRule = (state, silent) => {
  const mark = state.src[state.pos];
  if (mark !== '$' && mark !== '\\') return false;
  const found = formulaAt(state.src, state.pos);
  if (found === null) return false;
  if (!silent) {
    const token = state.push('formula', 'span', 0);
    token.content = found.tex;
    token.meta = { display: found.display };
  }
  state.pos = found.end;
  return true;
};

/** A formula of its own lines: nothing in it is a list or a heading. */
const block: BlockRule = (state, first, last, silent) => {
  const start = (state.bMarks[first] ?? 0) + (state.tShift[first] ?? 0);
  if (!state.src.startsWith('$$', start) && !state.src.startsWith('\\[', start)) return false;
  const limit = state.eMarks[last - 1] ?? state.src.length;
  const found = formulaAt(state.src.slice(0, limit), start);
  if (found === null) return false;
  let line = first;
  while ((state.eMarks[line] ?? limit) < found.end) line += 1;
  if (state.src.slice(found.end, state.eMarks[line]).trim() !== '') return false;
  if (silent) return true;
  const token = state.push('formula', 'span', 0);
  token.block = true;
  token.content = found.tex;
  token.meta = { display: true };
  state.line = line + 1;
  return true;
};

/** Teach a parser formulas. */
export function formulas(markdown: Parser): void {
  markdown.inline.ruler.before('escape', 'formula', inline);
  markdown.block.ruler.before('fence', 'formula', block, { alt: ['paragraph', 'blockquote'] });
  markdown.renderer.rules['formula'] = (tokens, place) => {
    const token = tokens[place];
    if (token === undefined) return '';
    const kind = token.meta?.['display'] === true ? 'math display' : 'math';
    return `<span class="${kind}">${markdown.utils.escapeHtml(token.content)}</span>`;
  };
}
