/** Text files that a reader attaches. */

import type { Attachment } from './types';

export const MAX_FILE_BYTES = 1_000_000;

export interface Refused {
  key: 'fileTooLarge' | 'fileNotText';
  values: { name: string; limit: string };
}

/** The texts of files, and why others were refused. */
export async function readFiles(
  list: Iterable<File>,
): Promise<{ files: Attachment[]; refused: Refused[] }> {
  const files: Attachment[] = [];
  const refused: Refused[] = [];
  for (const file of list) {
    const values = { name: file.name, limit: '1 MB' };
    if (file.size > MAX_FILE_BYTES) {
      refused.push({ key: 'fileTooLarge', values });
      continue;
    }
    const text = textOf(new Uint8Array(await file.arrayBuffer()));
    if (text === null) refused.push({ key: 'fileNotText', values });
    else files.push({ name: file.name, text });
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
