import { expect, test } from 'vitest';
import { SseParser } from '../src/api/sse';

const STREAM = 'data: {"a":1}\n\n: keep-alive\n\ndata: two\r\ndata: lines\r\n\r\nevent: x\rdata:深海\r\rdata: [DONE]\n\n';
const EVENTS = ['{"a":1}', 'two\nlines', '深海', '[DONE]'];

test('a stream gives the same events however it is cut', () => {
  for (let first = 0; first <= STREAM.length; first++) {
    for (const second of [first, Math.min(STREAM.length, first + 3)]) {
      const parser = new SseParser();
      const pieces = [STREAM.slice(0, first), STREAM.slice(first, second), STREAM.slice(second)];
      expect(pieces.flatMap((piece) => parser.push(piece))).toEqual(EVENTS);
    }
  }
});

test('an event that has no end is not given', () => {
  expect(new SseParser().push('data: half\n')).toEqual([]);
});
