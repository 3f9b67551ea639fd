/** Text files that a reader attaches. */

import type { Attachment } from './types';

export const MAX_FILE_BYTES = 1_000_000;
export const MAX_ALL_BYTES = 3_000_000; // with one message; the history takes 4 MiB

export interface Refused {
  key: 'fileTooLarge' | 'fileNotText';
  values: { name: string; limit: string };
}

/** The texts of files, and why others were refused; `held` bytes are attached already. */
export async function readFiles(
  list: Iterable<File>,
  held = 0,
): Promise<{ files: Attachment[]; refused: Refused[] }> {
  const files: Attachment[] = [];
  const refused: Refused[] = [];
  for (const file of list) {
    const room = Math.min(MAX_FILE_BYTES, MAX_ALL_BYTES - held);
    const values = { name: file.name, limit: `${Math.floor(room / 1000)} kB` };
    if (file.size > room) {
      refused.push({ key: 'fileTooLarge', values });
      continue;
    }
    const text = textOf(new Uint8Array(await file.arrayBuffer()));
    if (text === null) refused.push({ key: 'fileNotText', values });
    else {
      files.push({ name: file.name, text });
      held += file.size;
    }
  }
  return { files, refused };
}

/** UTF-8 without zero bytes, or null. */
export function textOf(bytes: Uint8Array): string | null {
  if (bytes.includes(0)) return null;
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (problem) {
    if (problem instanceof TypeError) return null;
    throw problem;
  }
}
