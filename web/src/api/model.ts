/** What is served: /v1/models, and /model where the server has it. */

import { ApiError, json } from './http';

export interface Served {
  /** The name to ask for. */
  id: string;
  maxTokens: number;
  /** never, always, or as asked */
  thinking: 'never' | 'always' | 'choice';
}

export interface ModelCard {
  id: string;
  folder: string;
  config: Record<string, unknown>;
  parameters: { total: number; active: number; parts: { name: string; count: number }[] };
  tokenizer: { vocab_size: number; sha256: string };
  layout: string;
  layouts: string[];
  thinking: boolean;
  max_model_len: number;
  curves: Record<string, [number, number][]>;
  report: boolean;
}

/** The model and whether it thinks, by the names it answers to. */
export async function served(): Promise<Served> {
  const { data } = await json<{ data: { id: string; max_model_len?: number }[] }>('v1/models');
  const names = data.map((one) => one.id);
  const chats = names.includes('deepseek-chat');
  const reasons = names.includes('deepseek-reasoner');
  return {
    id: names[0] ?? 'deepseek-chat',
    maxTokens: data[0]?.max_model_len ?? 0,
    thinking: reasons ? (chats ? 'choice' : 'always') : 'never',
  };
}

/** The model's card, or null from a server that has none. */
export async function modelCard(): Promise<ModelCard | null> {
  try {
    return await json<ModelCard>('model');
  } catch (problem) {
    if (problem instanceof ApiError && problem.status === 404) return null;
    throw problem;
  }
}
