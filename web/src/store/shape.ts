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

/** The fields that are there. */
function present<T extends object>(fields: { [K in keyof T]: T[K] | undefined }): T {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as T;
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
  const calls = listOf(value['tool_calls'], toolCall);
  const files = listOf(value['attachments'], attachment);
  return present<MessageData>({
    model: text(value['model']),
    finish_reason: text(value['finish_reason']),
    usage: usage(value['usage']),
    tool_calls: calls.length > 0 ? calls : undefined,
    tool_call_id: text(value['tool_call_id']),
    attachments: files.length > 0 ? files : undefined,
    insight: insight(value['insight']),
    elapsed_ms: number(value['elapsed_ms']),
    thought_ms: number(value['thought_ms']),
    first_token_ms: number(value['first_token_ms']),
    left_out: number(value['left_out']),
    error: text(value['error']),
    edited: value['edited'] === true ? true : undefined,
  });
}

/** A chat's options. */
export function optionsOf(value: unknown): Options {
  if (!isObject(value)) return {};
  const tools = listOf(value['tools'], tool);
  const stop = listOf(value['stop'], (one) => text(one) ?? null);
  return present<Options>({
    system: text(value['system']),
    temperature: number(value['temperature']),
    top_p: number(value['top_p']),
    top_k: number(value['top_k']),
    min_p: number(value['min_p']),
    repetition_penalty: number(value['repetition_penalty']),
    max_tokens: number(value['max_tokens']),
    seed: number(value['seed']),
    stop: stop.length > 0 ? stop : undefined,
    thinking: typeof value['thinking'] === 'boolean' ? value['thinking'] : undefined,
    json: value['json'] === true ? true : undefined,
    tools: tools.length > 0 ? tools : undefined,
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
