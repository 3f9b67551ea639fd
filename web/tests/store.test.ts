import { expect, test } from 'vitest';
import { ApiError } from '../src/api/http';
import { momentOf, parseMetrics, rates, total } from '../src/api/metrics';
import { extentOf, pathOf } from '../src/model/scale';
import { grouped } from '../src/store/chats.svelte';
import { matching, toExport, toMarkdown } from '../src/store/documents';
import { Outbox } from '../src/store/outbox';
import { partsOf } from '../src/store/server';
import { chatOf, dataOf, messageOf, optionsOf, wholeChatOf } from '../src/store/shape';
import type { Chat, WholeChat } from '../src/chat/types';

const ID = 'a'.repeat(32);
const CHAT: Chat = { id: ID, title: 'The deep sea', folder: null, pinned: false, options: {}, current: null, created: 1, updated: 2, deleted: null };
const WHOLE: WholeChat = {
  ...CHAT,
  messages: [{ id: 'b'.repeat(32), parent: null, role: 'user', content: 'Wo leben Fische? 深海', reasoning: null, data: {}, created: 1 }],
};

test('what was exported is read back the same', () => {
  const { chats } = JSON.parse(toExport([WHOLE])) as { chats: unknown[] };
  expect(wholeChatOf(chats[0])).toEqual(WHOLE);
  expect(toMarkdown(WHOLE)).toBe('# The deep sea\n\n## user\n\nWo leben Fische? 深海\n');
});

const WRONG: unknown[] = [null, 1, 'x', [], {}, { id: 1 }, { id: '../x' }, { id: ID, role: 'admin', content: '' }];
test.each(WRONG)('%j is no message', (value) => {
  expect(messageOf(value)).toBeNull();
});

test('forged fields are left out, whatever they are', () => {
  for (const value of [...WRONG, { a: { toString: 1 } }]) {
    expect(dataOf({ attachments: value, tool_calls: value, insight: value, usage: value, error: value === 'x' ? 1 : value, model: 3 })).not.toHaveProperty('model');
    expect(optionsOf({ temperature: 'hot', tools: value, stop: value, system: 1 })).toEqual({});
    expect(optionsOf(value)).toEqual({});
  }
  expect(chatOf({ id: ID, title: { html: 1 }, options: 3, pinned: 'yes' })).toMatchObject({ title: '', options: {}, pinned: false });
  expect(wholeChatOf({ id: ID, messages: [null, { role: 'user' }] })?.messages).toEqual([]);
  const { insight } = dataOf({ insight: { tokens: [{ text: 'a', top: [['b', 'x'], 3], experts: [[1, 'z'], 4] }, 5], summary: { moe_layers: 'x' } } });
  expect(insight?.tokens).toEqual([{ text: 'a', logprob: null, top: [], thought: false, experts: [[1], []], drafted: false }]);
  expect(insight?.summary?.moe_layers).toEqual([]);
});

test('words are found in titles and messages, in any language', () => {
  expect(matching(WHOLE, WHOLE.messages, 'DEEP fische')).toHaveLength(1);
  expect(matching(WHOLE, WHOLE.messages, '深海')[0]?.snippet).toContain('深海');
  expect(matching(WHOLE, WHOLE.messages, 'deep nowhere')).toEqual([]);
});

test('chats stand under their headings', () => {
  const now = 10 * 86_400_000;
  const chats = [{ ...CHAT, pinned: true }, { ...CHAT, folder: 'b' }, { ...CHAT, folder: 'a' }, { ...CHAT, updated: now }, CHAT];
  expect(grouped(chats, now).map(({ kind, name }) => kind + name)).toEqual(['pinned', 'foldera', 'folderb', 'today', 'older']);
});

test('the outbox keeps order, joins what waits, and loses nothing', async () => {
  const done: string[] = [];
  let works = false;
  const problems: unknown[] = [];
  const box = new Outbox((problem) => problems.push(problem));
  const task = (name: string) => (): Promise<void> => (works ? (done.push(name), Promise.resolve()) : Promise.reject(new Error('down')));
  await box.put('a', task('a'));
  await box.put('b', task('b1'));
  await box.put('b', task('b2'));
  expect([done, box.size]).toEqual([[], 2]);
  works = true;
  await box.retry();
  expect([done, box.size]).toEqual([['a', 'b2'], 0]);
  expect(problems.at(-1)).toBeNull();
});

test('what is refused for good steps aside and is tried again when asked', async () => {
  const done: string[] = [];
  const problems: unknown[] = [];
  const box = new Outbox((problem) => problems.push(problem));
  let status = 413;
  const refused = (): Promise<void> =>
    status === 0 ? (done.push('large'), Promise.resolve()) : Promise.reject(new ApiError(status, 'too large'));
  await box.put('large', refused);
  await box.put('next', () => Promise.resolve(done.push('next')));
  expect([done, box.size, box.hasRefused('large')]).toEqual([['next'], 1, true]);
  expect(problems.at(-1)).toBeInstanceOf(ApiError);
  status = 429; // from now on only for the moment: what follows waits
  await box.retry();
  await box.put('last', () => Promise.resolve(done.push('last')));
  expect([done, box.size, box.hasRefused('large')]).toEqual([['next'], 2, false]);
  status = 0;
  await box.retry();
  expect([done, box.size, problems.at(-1)]).toEqual([['next', 'large', 'last'], 0, null]);
});

test('a large export goes in parts, the oldest chats first', () => {
  const chats = Array.from({ length: 9 }, (_, n) => ({ id: n, text: 'x'.repeat(n * 10) }));
  for (const most of [1, 60, 150, 1e6]) {
    const parts = partsOf({ format: 'f', chats }, most) as { format: string; chats: typeof chats }[];
    expect(parts.toReversed().flatMap((part) => part.chats)).toEqual(chats);
    for (const { format, chats: some } of parts) {
      expect(format).toBe('f');
      expect(some.length === 1 || JSON.stringify(some).length <= most + 2 * some.length).toBe(true);
    }
  }
  expect(partsOf({ chats: 3 })).toEqual([{ chats: 3 }]);
  expect(partsOf({ chats: [] })).toEqual([{ chats: [] }]);
});

test('Prometheus text becomes numbers', () => {
  const text = '# HELP a b\n# TYPE a counter\nvllm:generation_tokens_total{model_name="m"} 5.0\nvllm:generation_tokens_total{model_name="\\"n\\""} 2\nvllm:num_requests_running 1\n';
  const found = parseMetrics(text);
  expect(total(found, 'vllm:generation_tokens_total')).toBe(7);
  expect(found.get('vllm:generation_tokens_total')?.[1]?.labels).toEqual({ model_name: '"n"' });
  const moments = [momentOf(found, 0), { ...momentOf(found, 2), generated: 17 }, { ...momentOf(found, 3), generated: 0 }];
  expect(rates(moments, (moment) => moment.generated)).toEqual([5, 0]);
});

test('curves fill their drawing', () => {
  const points = [[0, 1], [5, Number.NaN], [10, 3]] as const;
  expect(pathOf(points, extentOf(points), 100, 50)).toBe('M0.0 50.0L100.0 0.0');
  expect(extentOf([])).toEqual({ left: 0, right: 1, low: 0, high: 1 });
  expect(pathOf([[1, 2]], extentOf([[1, 2]]), 10, 10)).toBe('M0.0 10.0');
});
