/** The words that the page and the history share; the fields are those of the routes. */

export type Role = 'system' | 'user' | 'assistant' | 'tool';

export interface Attachment {
  name: string;
  text: string;
}

export interface ToolCall {
  id: string;
  type: 'function';
  function: { name: string; arguments: string };
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  prompt_tokens_details?: { cached_tokens?: number };
  completion_tokens_details?: { reasoning_tokens?: number };
}

/** What the last chunk of an answer tells about its making. */
export interface Summary {
  prompt_tokens: number;
  cached_tokens: number;
  latent_bytes_per_token: number;
  full_attention_bytes_per_token: number;
  cache_bytes: number;
  moe_layers: number[];
  n_routed_experts: number;
  num_experts_per_tok: number;
  drafted: number;
  accepted: number;
  time_to_first_token_s: number;
  tokens_per_s: number;
}

/** One token of an answer; alternatives as [text, log-probability], best first. */
export interface TokenInsight {
  text: string;
  logprob: number | null;
  top: [string, number][];
  thought: boolean;
  experts: number[][] | null; // per layer
  drafted: boolean;
}

export interface Insight {
  tokens: TokenInsight[];
  summary: Summary | null;
}

export interface MessageData {
  model?: string;
  finish_reason?: string | null;
  usage?: Usage | null;
  tool_calls?: ToolCall[];
  tool_call_id?: string;
  attachments?: Attachment[];
  insight?: Insight;
  elapsed_ms?: number;
  thought_ms?: number;
  first_token_ms?: number;
  left_out?: number;
  error?: string;
  edited?: boolean;
}

export interface Message {
  id: string;
  parent: string | null;
  role: Role;
  content: string;
  reasoning: string | null;
  data: MessageData;
  created: number;
}

export interface ToolDefinition {
  type: 'function';
  function: { name: string; description?: string; parameters?: object; strict?: boolean };
}

/** Wishes of one chat; what is absent is left to the server. */
export interface Options {
  system?: string;
  temperature?: number;
  top_p?: number;
  top_k?: number;
  min_p?: number;
  repetition_penalty?: number;
  max_tokens?: number;
  seed?: number;
  stop?: string[];
  thinking?: boolean;
  json?: boolean;
  tools?: ToolDefinition[];
}

export interface Chat {
  id: string;
  title: string;
  folder: string | null;
  pinned: boolean;
  options: Options;
  current: string | null;
  created: number;
  updated: number;
  deleted: number | null;
}

export interface FoundChat extends Chat {
  snippet?: string;
}

export interface WholeChat extends Chat {
  messages: Message[];
}

/** An id for a chat or a message. */
export function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID wants https
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}
