/** KaTeX with its fonts; a chunk of its own, loaded with the first formula. */

import katex from 'katex';
import 'katex/dist/katex.min.css';

/** Fill an element that holds TeX with the formula; what is no formula stays as it is written. */
export function typeset(element: HTMLElement): void {
  const tex = element.textContent;
  try {
    katex.render(tex, element, {
      displayMode: element.classList.contains('display'),
      throwOnError: true,
      trust: false,
      strict: 'ignore',
      maxExpand: 500,
      maxSize: 20,
    });
  } catch (problem) {
    if (!(problem instanceof katex.ParseError)) throw problem;
    element.textContent = tex;
    element.classList.add('unreadable');
  }
}
