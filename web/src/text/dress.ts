/** What a rendered block gets besides: colors, formulas, a head with a copy button on code. */

import { copyText } from './clipboard';
import { languageOf, renderSpans } from './markdown';

export interface Words {
  copy: string;
  copied: string;
}

const MAX_LIVE_CHARS = 4000; // of code that is still being written, colored again with each token

let languages: typeof import('./languages') | null = null;
let formula: typeof import('./formula') | null = null;

/** Complete a block's nodes in place; `live` while its text still grows. */
export function dress(root: DocumentFragment | HTMLElement, words: Words, live: boolean): void {
  for (const code of root.querySelectorAll<HTMLElement>('pre > code')) {
    const text = code.textContent;
    const language = languageOf(code);
    const frame = code.parentElement;
    frame?.before(codeHead(language, text, words));
    frame?.setAttribute('tabindex', '0'); // so that the keyboard can scroll it
    if (language !== '' && !(live && text.length > MAX_LIVE_CHARS)) color(code, text, language);
  }
  for (const element of root.querySelectorAll<HTMLElement>('.math')) {
    if (element.classList.contains('display')) element.tabIndex = 0;
    typeset(element);
  }
  for (const table of root.querySelectorAll('table')) scrollable(table);
}

function codeHead(language: string, text: string, words: Words): HTMLElement {
  const head = document.createElement('div');
  head.className = 'code-head';
  const name = document.createElement('span');
  name.textContent = language;
  const button = document.createElement('button');
  button.type = 'button';
  button.textContent = words.copy;
  button.addEventListener('click', () => {
    void copyText(text.replace(/\n$/, '')).then((isDone) => {
      if (isDone) button.textContent = words.copied;
      setTimeout(() => (button.textContent = words.copy), 1500);
    });
  });
  head.append(name, button);
  return head;
}

function color(code: HTMLElement, text: string, language: string): void {
  if (languages === null) {
    void import('./languages').then((loaded) => {
      languages = loaded;
      if (code.isConnected) color(code, text, language);
    });
    return;
  }
  const html = languages.colored(text, language);
  if (html !== null) code.replaceChildren(renderSpans(html));
}

function typeset(element: HTMLElement): void {
  if (formula === null) {
    void import('./formula').then((loaded) => {
      formula = loaded;
      if (element.isConnected) loaded.typeset(element);
    });
    return;
  }
  formula.typeset(element);
}

/** A table that is too wide scrolls by itself, with the keyboard too. */
function scrollable(table: HTMLTableElement): void {
  const frame = document.createElement('div');
  frame.className = 'table';
  frame.tabIndex = 0;
  frame.setAttribute('role', 'group');
  table.before(frame);
  frame.append(table);
}
