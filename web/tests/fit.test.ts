import { describe, expect, test } from 'vitest';
import { fit, roomFor, type WireMessage } from '../src/chat/fit';

const counted: number[] = [];
/** One token for each character of what is said. */
const count = (messages: readonly WireMessage[]): Promise<number> => {
  const tokens = messages.reduce((sum, { content }) => sum + String(content).length, 0);
  counted.push(tokens);
  return Promise.resolve(tokens);
};

function talk(turns: number, size: number, system = false): WireMessage[] {
  const pairs = Array.from({ length: turns }, (_, n) => [
    { role: 'user', content: `${n}`.padEnd(size, '.') },
    { role: 'assistant', content: 'a'.repeat(size) },
  ]).flat();
  return [...(system ? [{ role: 'system', content: 'S' }] : []), ...pairs, { role: 'user', content: 'last' }];
}

describe('fit', () => {
  test.each([[1, 10], [5, 100], [40, 10], [200, 33]])('%i turns of %i', async (turns, size) => {
    for (const system of [false, true]) {
      const all = talk(turns, size, system);
      for (const limit of [5, 50, 500, 5000, 50_000]) {
        counted.length = 0;
        const { messages, dropped } = await fit(all, limit, count);
        const head = system ? 1 : 0;
        expect(counted.length).toBeLessThan(12);
        expect(messages).toEqual([...all.slice(0, head), ...all.slice(head + dropped)]);
        expect(messages[head]?.role).toBe('user');
        const tokens = await count(messages);
        expect(tokens <= limit || messages.length === head + 1).toBe(true);
      }
    }
  });

  test('what fits is not counted', async () => {
    counted.length = 0;
    expect(await fit(talk(3, 10), 10_000, count)).toEqual({ messages: talk(3, 10), dropped: 0 });
    expect(counted).toEqual([]);
  });

  test('calls and their results leave with their question', async () => {
    const called = [{ role: 'user', content: 'q'.repeat(90) }, { role: 'assistant', content: '' }, { role: 'tool', content: 'r' }, { role: 'assistant', content: 'a' }];
    const { messages, dropped } = await fit([...called, { role: 'user', content: 'last' }], 50, count);
    expect([messages, dropped]).toEqual([[{ role: 'user', content: 'last' }], 4]);
  });
});

test('room for an answer is never more than half of the context', () => {
  expect([roomFor(512, undefined), roomFor(131072, undefined), roomFor(4096, 100)]).toEqual([256, 1024, 100]);
});
