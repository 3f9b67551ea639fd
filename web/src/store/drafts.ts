/** What was typed and not sent yet; it survives a reload. */

import type { Attachment } from '../chat/types';

export interface Draft {
  text: string;
  files: Attachment[];
}

const MAX_CHARS = 500_000; // of all drafts the browser keeps about 5 MB

function nameOf(chat: string | null): string {
  return `abyssal.draft.${chat ?? 'new'}`;
}

/** The draft of a chat; null: of a new one. */
export function draftOf(chat: string | null): Draft {
  try {
    const { text, files } = JSON.parse(localStorage.getItem(nameOf(chat)) ?? '{}') as Partial<Draft>;
    return { text: typeof text === 'string' ? text : '', files: Array.isArray(files) ? files : [] };
  } catch {
    return { text: '', files: [] };
  }
}

/** Keep a draft; an empty one is forgotten. Files that are too large are not kept. */
export function keepDraft(chat: string | null, draft: Draft): void {
  if (draft.text === '' && draft.files.length === 0) {
    localStorage.removeItem(nameOf(chat));
    return;
  }
  const whole = JSON.stringify(draft);
  const kept = whole.length <= MAX_CHARS ? whole : JSON.stringify({ text: draft.text, files: [] });
  try {
    localStorage.setItem(nameOf(chat), kept);
  } catch (problem) {
    if (!(problem instanceof DOMException)) throw problem; // full: the text stays on the page
  }
}
