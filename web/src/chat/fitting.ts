/** Message data small enough to be stored: what weighs most goes first. */

import type { MessageData } from './types';

export const MAX_DATA_CHARS = 1_000_000; // of JSON; the server takes 4 MiB

/** The data, without the experts of each token, then without alternatives, if it is too large. */
export function fitting(data: MessageData, most = MAX_DATA_CHARS): MessageData {
  if (data.insight === undefined || size(data) <= most) return data;
  const { tokens, summary } = data.insight;
  const without = [
    tokens.map((token) => ({ ...token, experts: null })),
    tokens.map((token) => ({ ...token, experts: null, top: [] })),
    [],
  ];
  for (const fewer of without) {
    const kept = { ...data, insight: { tokens: fewer, summary } };
    if (size(kept) <= most) return kept;
  }
  const bare = { ...data };
  delete bare.insight;
  return bare;
}

function size(value: unknown): number {
  return JSON.stringify(value).length;
}
