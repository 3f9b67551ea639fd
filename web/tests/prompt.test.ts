import { expect, test } from 'vitest';
import { bodyOf, messagesOf, titleOf, withFiles } from '../src/chat/prompt';
import { textOf } from '../src/chat/files';
import { parseTools } from '../src/chat/tools';
import type { Message } from '../src/chat/types';

function message(role: Message['role'], content: string, data: Message['data'] = {}): Message {
  return { id: 'a', parent: null, role, content, reasoning: 'thoughts', data, created: 0 };
}

const CALL = { id: 'c', type: 'function', function: { name: 'f', arguments: '{}' } } as const;
const PLAIN = { insight: false, thinks: false };

test('files come before the question in the released template', () => {
  expect(withFiles('What is it?', [{ name: 'a.txt', text: 'A' }, { name: 'b.txt', text: 'B' }])).toBe(
    '[file name]: a.txt\n[file content begin]\nA\n[file content end]\n' +
      '[file name]: b.txt\n[file content begin]\nB\n[file content end]\nWhat is it?',
  );
});

test('a conversation is sent without thoughts, with its calls and results', () => {
  const path = [message('user', 'q'), message('assistant', '', { tool_calls: [CALL] }), message('tool', 'r', { tool_call_id: 'c' }), message('assistant', 'a')];
  expect(messagesOf(path, { system: ' S ' })).toEqual([
    { role: 'system', content: 'S' },
    { role: 'user', content: 'q' },
    { role: 'assistant', content: null, tool_calls: [CALL] },
    { role: 'tool', content: 'r', tool_call_id: 'c' },
    { role: 'assistant', content: 'a' },
  ]);
});

test('only what was chosen is said', () => {
  const body = bodyOf('m', messagesOf([message('user', 'q')], {}), {}, PLAIN);
  expect(Object.keys(body).sort()).toEqual(['messages', 'model', 'stream', 'stream_options']);
  const wishes = { temperature: 0, max_tokens: 5, json: true, thinking: true, tools: parseTools('[{"name":"f"}]') };
  expect(bodyOf('m', [], wishes, { insight: true, thinks: true })).toMatchObject({
    temperature: 0, max_tokens: 5, response_format: { type: 'json_object' }, thinking: { type: 'enabled' },
    tools: [{ type: 'function', function: { name: 'f' } }], insight: true, logprobs: true, top_logprobs: 5,
  });
});

test('titles are short, whole characters', () => {
  expect(titleOf('  a\n b ')).toBe('a b');
  expect(Array.from(titleOf('🐟'.repeat(90)))).toHaveLength(60);
  expect(titleOf('', [{ name: 'a.txt', text: '' }])).toBe('a.txt');
});

test.each(['{"a": 1}', '[1]', '[{"name": "a b"}]', '[{"function": {}}]', '{'])('%s is no list of tools', (text) => {
  expect(() => parseTools(text)).toThrow();
});

test('only text is text', () => {
  expect(textOf(new TextEncoder().encode('深'))).toBe('深');
  expect(textOf(new Uint8Array([0xff, 0xfe]))).toBeNull();
  expect(textOf(new Uint8Array([65, 0]))).toBeNull();
});
