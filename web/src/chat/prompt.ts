/** A conversation as the chat completions API takes it. */

import type { WireMessage } from './fit';
import type { Attachment, Message, Options } from './types';

/** DeepSeek's template for one file; several stand one after another. */
export function withFiles(question: string, files: readonly Attachment[]): string {
  const parts = files.map(
    ({ name, text }) => `[file name]: ${name}\n[file content begin]\n${text}\n[file content end]\n`,
  );
  return parts.join('') + question;
}

/** A message as it is sent; thoughts of earlier answers are not sent back. */
export function toWire(message: Message): WireMessage {
  const { role, content, data } = message;
  if (role === 'user') return { role, content: withFiles(content, data.attachments ?? []) };
  if (role === 'tool') return { role, content, tool_call_id: data.tool_call_id };
  if (role === 'assistant' && data.tool_calls !== undefined && data.tool_calls.length > 0) {
    return { role, content: content === '' ? null : content, tool_calls: data.tool_calls };
  }
  return { role, content };
}

const PASSED = [
  'temperature', 'top_p', 'top_k', 'min_p', 'repetition_penalty', 'max_tokens', 'seed', 'stop',
] as const satisfies (keyof Options)[];

/** What the model shall read: the system prompt and the messages on the way here. */
export function messagesOf(path: readonly Message[], options: Options): WireMessage[] {
  const system = options.system?.trim() ?? '';
  return [...(system === '' ? [] : [{ role: 'system', content: system }]), ...path.map(toWire)];
}

/** The body of a streamed chat request; `thinks` where the model leaves the choice. */
export function bodyOf(
  model: string,
  messages: readonly WireMessage[],
  options: Options,
  { insight, thinks }: { insight: boolean; thinks: boolean },
): Record<string, unknown> {
  const body: Record<string, unknown> = {
    model,
    messages,
    stream: true,
    stream_options: { include_usage: true },
  };
  for (const name of PASSED) {
    const value = options[name];
    if (value !== undefined) body[name] = value;
  }
  if (thinks) body['thinking'] = { type: options.thinking === true ? 'enabled' : 'disabled' };
  if (options.json === true) body['response_format'] = { type: 'json_object' };
  if (options.tools !== undefined && options.tools.length > 0) body['tools'] = options.tools;
  if (insight) Object.assign(body, { insight: true, logprobs: true, top_logprobs: 5 });
  return body;
}

/** A title for a chat that has none: the beginning of what was asked. */
export function titleOf(text: string, files: readonly Attachment[] = []): string {
  const line = text.trim().replace(/\s+/g, ' ') || (files[0]?.name ?? '');
  const letters = Array.from(line);
  return letters.length <= 60 ? line : `${letters.slice(0, 59).join('')}…`;
}
