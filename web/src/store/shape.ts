/**
 * What was stored, read with care.
 *
 * Message data and options are free JSON to the server and to imported files: here every field
 * either has the type the page expects or is left out.
 */

import type {
  Attachment, Chat, Insight, Message, MessageData, Options, Role, Summary, TokenInsight, ToolCall,
  ToolDefinition, Usage, WholeChat,
} from '../chat/types';

type Fields = Record<string, unknown>;

const ID = /^[0-9a-f]{32}$/;
const ROLES: readonly unknown[] = ['system', 'user', 'assistant', 'tool'];

function isObject(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function text(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined;
}

function number(value: unknown): number | undefined {
  return typeof value === 'number' && Number.isFinite(value) ? value : undefined;
}

function listOf<T>(value: unknown, read: (item: unknown) => T | null): T[] {
  return Array.isArray(value) ? value.map(read).filter((item) => item !== null) : [];
}

/** The fields that are there and have their type. */
function fieldsOf<T>(value: Fields, readers: { [K in keyof T]-?: (given: unknown) => T[K] | undefined }): T {
  const read = Object.entries<(given: unknown) => unknown>(readers).map(([name, reader]) => [name, reader(value[name])]);
  return Object.fromEntries(read.filter(([, given]) => given !== undefined)) as T;
}

/** A list with something in it. */
function some<T>(read: (item: unknown) => T | null): (value: unknown) => T[] | undefined {
  return (value) => {
    const found = listOf(value, read);
    return found.length > 0 ? found : undefined;
  };
}

function yes(value: unknown): true | undefined {
  return value === true ? true : undefined;
}

function attachment(value: unknown): Attachment | null {
  if (!isObject(value)) return null;
  const name = text(value['name']);
  const content = text(value['text']);
  return name === undefined || content === undefined ? null : { name, text: content };
}

function toolCall(value: unknown): ToolCall | null {
  if (!isObject(value) || !isObject(value['function'])) return null;
  const { name, arguments: given } = value['function'];
  if (typeof name !== 'string' || typeof given !== 'string') return null;
  return { id: text(value['id']) ?? '', type: 'function', function: { name, arguments: given } };
}

function tool(value: unknown): ToolDefinition | null {
  if (!isObject(value) || !isObject(value['function'])) return null;
  if (typeof value['function']['name'] !== 'string') return null;
  return value as unknown as ToolDefinition;
}

function token(value: unknown): TokenInsight | null {
  if (!isObject(value) || typeof value['text'] !== 'string') return null;
  const experts = listOf(value['experts'], (layer) => listOf(layer, (id) => number(id) ?? null));
  return {
    text: value['text'],
    logprob: number(value['logprob']) ?? null,
    top: listOf(value['top'], (pair): [string, number] | null => {
      if (!Array.isArray(pair)) return null;
      const name = text(pair[0]);
      const logprob = number(pair[1]);
      return name === undefined || logprob === undefined ? null : [name, logprob];
    }),
    thought: value['thought'] === true,
    experts: experts.length > 0 ? experts : null,
    drafted: value['drafted'] === true,
  };
}

const SUMMARY = [
  'prompt_tokens', 'cached_tokens', 'latent_bytes_per_token', 'full_attention_bytes_per_token',
  'cache_bytes', 'n_routed_experts', 'num_experts_per_tok', 'drafted', 'accepted',
  'time_to_first_token_s', 'tokens_per_s',
] as const satisfies (keyof Summary)[];

function summary(value: unknown): Summary | null {
  if (!isObject(value)) return null;
  const numbers = SUMMARY.map((name) => [name, number(value[name]) ?? 0]);
  const layers = listOf(value['moe_layers'], (layer) => number(layer) ?? null);
  return { ...(Object.fromEntries(numbers) as Omit<Summary, 'moe_layers'>), moe_layers: layers };
}

function insight(value: unknown): Insight | undefined {
  if (!isObject(value)) return undefined;
  const tokens = listOf(value['tokens'], token);
  const found = summary(value['summary']);
  return tokens.length === 0 && found === null ? undefined : { tokens, summary: found };
}

function usage(value: unknown): Usage | undefined {
  if (!isObject(value) || number(value['total_tokens']) === undefined) return undefined;
  return value as unknown as Usage;
}

/** A message's data. */
export function dataOf(value: unknown): MessageData {
  if (!isObject(value)) return {};
  return fieldsOf<MessageData>(value, {
    model: text,
    finish_reason: text,
    usage,
    tool_calls: some(toolCall),
    tool_call_id: text,
    attachments: some(attachment),
    insight,
    elapsed_ms: number,
    thought_ms: number,
    first_token_ms: number,
    left_out: number,
    error: text,
    edited: yes,
  });
}

/** A chat's options. */
export function optionsOf(value: unknown): Options {
  if (!isObject(value)) return {};
  return fieldsOf<Options>(value, {
    system: text,
    temperature: number,
    top_p: number,
    top_k: number,
    min_p: number,
    repetition_penalty: number,
    max_tokens: number,
    seed: number,
    stop: some((one) => text(one) ?? null),
    thinking: (given) => (typeof given === 'boolean' ? given : undefined),
    json: yes,
    tools: some(tool),
  });
}

/** A message, or null where it is none. */
export function messageOf(value: unknown): Message | null {
  if (!isObject(value) || !ROLES.includes(value['role'])) return null;
  const id = text(value['id']) ?? '';
  const content = text(value['content']);
  if (!ID.test(id) || content === undefined) return null;
  return {
    id,
    parent: text(value['parent']) ?? null,
    role: value['role'] as Role,
    content,
    reasoning: text(value['reasoning']) ?? null,
    data: dataOf(value['data']),
    created: number(value['created']) ?? 0,
  };
}

/** A chat, or null where it is none. */
export function chatOf(value: unknown): Chat | null {
  if (!isObject(value) || !ID.test(text(value['id']) ?? '')) return null;
  return {
    id: text(value['id']) ?? '',
    title: text(value['title']) ?? '',
    folder: text(value['folder']) ?? null,
    pinned: value['pinned'] === true,
    options: optionsOf(value['options']),
    current: text(value['current']) ?? null,
    created: number(value['created']) ?? 0,
    updated: number(value['updated']) ?? 0,
    deleted: number(value['deleted']) ?? null,
  };
}

/** A chat with its messages, or null where it is none. */
export function wholeChatOf(value: unknown): WholeChat | null {
  const chat = chatOf(value);
  if (chat === null) return null;
  return { ...chat, messages: listOf((value as Fields)['messages'], messageOf) };
}
