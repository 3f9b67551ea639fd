/**
 * A conversation that the model can read: the oldest turns leave when it is full.
 *
 * As `abyssal chat` does it: what leaves are whole turns, from a question to before the next one;
 * the system prompt stays, and so does the last question.
 */

import { json, sending } from '../api/http';

export interface WireMessage {
  role: string;
  [field: string]: unknown;
}

/** How many tokens a conversation has. */
export type Counter = (messages: readonly WireMessage[]) => Promise<number>;

const MAX_ROOM = 1024; // tokens for an answer whose length nobody bounded

/** Tokens kept free for the answer. */
export function roomFor(context: number, maxTokens: number | undefined): number {
  return Math.min(maxTokens ?? MAX_ROOM, Math.floor(context / 2));
}

/**
 * The messages without the turns that do not fit, and how many messages were left out.
 *
 * A few counts are enough: each tells about how many of the turns have to go.
 */
export async function fit(
  messages: readonly WireMessage[],
  limit: number,
  count: Counter,
): Promise<{ messages: WireMessage[]; dropped: number }> {
  const head = messages.filter((message, place) => place === 0 && message.role === 'system');
  const rest = messages.slice(head.length);
  const starts = rest.flatMap((message, place) => (message.role === 'user' ? [place] : []));
  let first = 0; // of the turns in starts that stay
  for (;;) {
    const kept = [...head, ...rest.slice(first === 0 ? 0 : starts[first])];
    const dropped = messages.length - kept.length;
    const left = starts.length - first;
    // No text has more tokens than bytes: what is short need not be counted.
    if (left <= 1 || bytesOf(kept) < limit) return { messages: kept, dropped };
    const tokens = await count(kept);
    if (tokens <= limit) return { messages: kept, dropped };
    const share = Math.floor(left * (1 - limit / tokens));
    first += Math.max(1, Math.min(left - 1, share));
  }
}

function bytesOf(messages: readonly WireMessage[]): number {
  return new TextEncoder().encode(JSON.stringify(messages)).length;
}

/** Count with the server's tokenizer. */
export function counter(thinking: boolean | undefined, tools: unknown): Counter {
  return async (messages) => {
    const body = {
      messages,
      ...(tools === undefined ? {} : { tools }),
      ...(thinking === undefined ? {} : { chat_template_kwargs: { thinking } }),
    };
    return (await json<{ count: number }>('tokenize', sending('POST', body))).count;
  };
}
