import { expect, test } from 'vitest';
import { ApiError } from '../src/api/http';
import { Answer, type Chunk } from '../src/chat/answer';
import { countExperts, busiest, probability, shapeOf, visibleText, warmth } from '../src/chat/insight';
import { fitting } from '../src/chat/fitting';

const entry = (token: string, logprob = -0.5): object => ({ token, logprob, top_logprobs: [{ token, logprob }] });

function chunk(choice: object, more: object = {}): Chunk {
  return { model: 'm', choices: [choice], ...more } as Chunk;
}

test('chunks become text, thoughts, calls and what is known of each token', () => {
  const answer = new Answer(1000);
  answer.add(chunk({ delta: { role: 'assistant', content: '' } }), 1001);
  answer.add(chunk({ delta: { reasoning_content: 'hm' }, logprobs: { content: [], reasoning_content: [entry('hm')] }, insight: { tokens: [{ experts: [[1, 2]], drafted: false }] } }), 1100);
  answer.add(chunk({ delta: { content: 'Hi' }, logprobs: { content: [entry('Hi', -9999)] }, insight: { tokens: [{ experts: [[0, 2]], drafted: true }] } }), 1500);
  answer.add(chunk({ delta: { tool_calls: [{ index: 0, id: 'c', function: { name: 'f', arguments: '{"a"' } }] } }), 1600);
  answer.add(chunk({ delta: { tool_calls: [{ index: 0, function: { arguments: ':1}' } }] }, finish_reason: 'tool_calls' }), 1700);
  answer.add({ choices: [], usage: { prompt_tokens: 1, completion_tokens: 2, total_tokens: 3 } }, 1800);
  expect([answer.content, answer.reasoning]).toEqual(['Hi', 'hm']);
  const data = answer.data(2000);
  expect(data).toMatchObject({ model: 'm', finish_reason: 'tool_calls', elapsed_ms: 1000, first_token_ms: 100, thought_ms: 500 });
  expect(data.tool_calls).toEqual([{ id: 'c', type: 'function', function: { name: 'f', arguments: '{"a":1}' } }]);
  expect(data.usage?.total_tokens).toBe(3);
  expect(data.insight?.tokens).toEqual([
    { text: 'hm', logprob: -0.5, top: [['hm', -0.5]], thought: true, experts: [[1, 2]], drafted: false },
    { text: 'Hi', logprob: null, top: [['Hi', -9999]], thought: false, experts: [[0, 2]], drafted: true },
  ]);
  const tokens = data.insight?.tokens ?? [];
  expect(shapeOf(tokens, null)).toEqual({ layers: [0], numExperts: 3 });
  expect(countExperts(tokens, 1, 3)).toEqual([[1, 1, 2]]);
  expect(busiest([1, 1, 2])).toBe(1.5);
  expect(busiest([0, 0])).toBe(0);
});

test('an error in the stream is told', () => {
  expect(() => { new Answer(0).add({ error: { message: 'no', code: 'c' } }, 1); }).toThrow(ApiError);
});

test('without insight nothing is kept about tokens', () => {
  const answer = new Answer(0);
  answer.add(chunk({ delta: { content: 'a' } }), 1);
  expect(answer.data(2)).not.toHaveProperty('insight');
});

test('warmth runs from certain to hardly likely', () => {
  expect([0, Math.log(0.95), Math.log(0.5), -20, null].map(warmth)).toEqual([0, 0, 5, 9, 9]);
  expect(probability(0.1)).toBe(1);
});

test('every token can be seen, and ordinary text is what it is', () => {
  for (let code = 0; code <= 0x10ffff; code += 1) {
    const letter = String.fromCodePoint(code);
    if (!/[\p{Cc}\p{Z}\p{DI}\p{M}]/u.test(letter)) continue;
    expect(visibleText(letter)).toMatch(/[^\p{Cc}\p{Z}\p{DI}\p{M}]/u);
  }
  for (const text of ['fish', ' of the', '淵', 'می\u200cخواهم', '👩\u200d🚀', 'e\u0301', '<｜User｜>']) expect(visibleText(text)).toBe(text);
  const signs = ['\n', 'a\r\n', '\t', '  ', '\u00a0', '\u0301', '\x00', '\x7f', '\x85', '\u200b', '', 'bytes:\\xe6\\xb7'].map(visibleText);
  expect(signs).toEqual(['⏎', 'a␍⏎', '⇥', '␣␣', 'U+00A0', '◌\u0301', '␀', '␡', 'U+0085', 'U+200B', '∅', '\\xe6\\xb7']);
});

test('data that is too large loses what weighs most first', () => {
  const tokens = Array.from({ length: 100 }, () => ({ text: 'a', logprob: -1, top: [['b', -2]] as [string, number][], thought: false, experts: [Array<number>(50).fill(1)], drafted: false }));
  const data = { model: 'm', insight: { tokens, summary: null } };
  expect(fitting(data, 1e6)).toBe(data);
  expect(fitting(data, 15_000).insight?.tokens[0]).toMatchObject({ experts: null, top: [['b', -2]] });
  expect(fitting(data, 8_500).insight?.tokens[0]).toMatchObject({ experts: null, top: [] });
  expect(fitting(data, 200).insight?.tokens).toEqual([]);
  expect(fitting(data, 20)).toEqual({ model: 'm' });
});
