/**
 * Markdown to a document fragment: the one place of the page where text becomes HTML.
 *
 * HTML in the source stays text (markdown-it with html off), what comes out is purified again by
 * DOMPurify with a list of what may be there, and pictures from elsewhere become links, so that an
 * answer cannot make a browser call anybody.
 */

import DOMPurify, { type Config } from 'dompurify';
import MarkdownIt from 'markdown-it';
import { formulas } from './formulas';

const markdown = new MarkdownIt({ html: false, linkify: true, breaks: true });
markdown.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
markdown.use(formulas);

const { escapeHtml } = markdown.utils;

markdown.renderer.rules.image = (tokens, place) => {
  const token = tokens[place];
  const address = String(token?.attrGet('src') ?? '');
  const words = escapeHtml(token?.content ?? '');
  if (address.startsWith('data:image/')) return `<img src="${escapeHtml(address)}" alt="${words}">`;
  return `<a href="${escapeHtml(address)}">${words || escapeHtml(address)}</a>`;
};

// Alignment as a class: the policy forbids style attributes.
for (const name of ['th_open', 'td_open'] as const) {
  markdown.renderer.rules[name] = (tokens, place) => {
    const token = tokens[place];
    const side = /text-align:(\w+)/.exec(String(token?.attrGet('style') ?? ''))?.[1];
    const tag = name === 'th_open' ? 'th' : 'td';
    return side === undefined ? `<${tag}>` : `<${tag} class="to-${side}">`;
  };
}

const ALLOWED: Config = {
  ALLOWED_TAGS: [
    'p', 'br', 'hr', 'h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'ul', 'ol', 'li', 'blockquote', 'pre',
    'code', 'em', 'strong', 's', 'a', 'img', 'table', 'thead', 'tbody', 'tr', 'th', 'td', 'span',
  ],
  ALLOWED_ATTR: ['href', 'title', 'alt', 'src', 'class', 'start'],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:|#|data:image\/(?:gif|png|jpeg|webp);)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
const SPANS: Config = { ALLOWED_TAGS: ['span'], ALLOWED_ATTR: ['class'], RETURN_DOM_FRAGMENT: true };

/** The language that a fence names, in lower case; "" without one. */
export function languageOf(code: Element): string {
  return /\blanguage-([\w+#-]+)/.exec(code.className)?.[1]?.toLowerCase() ?? '';
}

/** A block of Markdown as nodes that can do no harm. */
export function render(source: string): DocumentFragment {
  const fragment = DOMPurify.sanitize(markdown.render(source), ALLOWED) as unknown as DocumentFragment;
  for (const link of fragment.querySelectorAll('a')) {
    link.target = '_blank';
    link.rel = 'noopener noreferrer nofollow';
  }
  // By the first letters of each part; within a list, a table or a quotation one direction holds.
  for (const part of fragment.children) {
    if (!part.classList.contains('math')) part.setAttribute('dir', 'auto');
  }
  for (const part of fragment.querySelectorAll('pre')) part.setAttribute('dir', 'ltr');
  return fragment;
}

/** Colored code, as a highlighter wrote it, as nodes. */
export function renderSpans(html: string): DocumentFragment {
  return DOMPurify.sanitize(html, SPANS) as unknown as DocumentFragment;
}
