/** One streamed answer. */

import { Answer, type Chunk } from '../chat/answer';
import { request, sending } from './http';
import { events } from './sse';

/**
 * Ask for an answer and call `grew` as it grows, at most once a frame.
 *
 * Throws ApiError; returns what there is when `signal` aborts.
 */
export async function complete(
  body: object,
  signal: AbortSignal,
  answer: Answer,
  grew: () => void,
): Promise<void> {
  let frame = 0;
  const soon = (): void => {
    if (frame !== 0) return;
    frame = requestAnimationFrame(() => {
      frame = 0;
      grew();
    });
  };
  try {
    const reply = await request('v1/chat/completions', sending('POST', body, { signal }));
    if (reply.body === null) return;
    for await (const data of events(reply.body)) {
      if (data === '[DONE]') break;
      answer.add(JSON.parse(data) as Chunk, performance.now());
      soon();
    }
  } catch (problem) {
    if (!signal.aborted) throw problem;
    answer.finishReason ??= 'stopped';
  } finally {
    cancelAnimationFrame(frame);
    grew();
  }
}
