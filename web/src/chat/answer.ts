/** An answer put together from the chunks of its stream. */

import { ApiError } from '../api/http';
import type { Insight, MessageData, Summary, ToolCall, TokenInsight, Usage } from './types';

interface Entry {
  token: string;
  logprob: number;
  top_logprobs: { token: string; logprob: number }[];
}

interface CallPiece {
  index: number;
  id?: string;
  function?: { name?: string; arguments?: string };
}

interface Choice {
  delta?: { content?: string | null; reasoning_content?: string | null; tool_calls?: CallPiece[] };
  finish_reason?: string | null;
  logprobs?: { content?: Entry[] | null; reasoning_content?: Entry[] | null } | null;
  insight?: { tokens?: { experts: number[][]; drafted: boolean }[]; summary?: Summary } | null;
}

export interface Chunk {
  model?: string;
  choices?: Choice[];
  usage?: Usage | null;
  error?: { message?: string; code?: string };
}

/** Takes chunks one by one; its fields are the answer so far. */
export class Answer {
  content = '';
  reasoning: string | null = null;
  calls: ToolCall[] = [];
  model = '';
  finishReason: string | null = null;
  leftOut = 0; // messages that no longer fit beside it
  usage: Usage | null = null;
  private entries: { entry: Entry; thought: boolean }[] = [];
  private routed: { experts: number[][]; drafted: boolean }[] = [];
  private summary: Summary | null = null;
  private firstMs: number | null = null;
  private thoughtMs: number | null = null;

  constructor(private readonly begin: number) {}

  /** Add a chunk that came at `now` (ms). Throws ApiError where it tells of a fault. */
  add(chunk: Chunk, now: number): void {
    if (chunk.error !== undefined) {
      throw new ApiError(500, chunk.error.message ?? '', chunk.error.code ?? '');
    }
    this.model = chunk.model ?? this.model;
    this.usage = chunk.usage ?? this.usage;
    const choice = chunk.choices?.[0];
    if (choice === undefined) return;
    this.addText(choice, now);
    for (const piece of choice.delta?.tool_calls ?? []) this.addCall(piece);
    this.addInsight(choice);
    this.finishReason = choice.finish_reason ?? this.finishReason;
  }

  private addText({ delta }: Choice, now: number): void {
    const thought = delta?.reasoning_content ?? '';
    const text = delta?.content ?? '';
    if (thought !== '') this.reasoning = (this.reasoning ?? '') + thought;
    if (text !== '' || (delta?.tool_calls?.length ?? 0) > 0) {
      if (this.reasoning !== null) this.thoughtMs ??= now - this.begin;
    }
    this.content += text;
    if (thought !== '' || text !== '') this.firstMs ??= now - this.begin;
  }

  private addCall(piece: CallPiece): void {
    const call = (this.calls[piece.index] ??= {
      id: piece.id ?? '',
      type: 'function',
      function: { name: '', arguments: '' },
    });
    call.function.name += piece.function?.name ?? '';
    call.function.arguments += piece.function?.arguments ?? '';
  }

  private addInsight({ logprobs, insight }: Choice): void {
    for (const entry of logprobs?.reasoning_content ?? []) this.entries.push({ entry, thought: true });
    for (const entry of logprobs?.content ?? []) this.entries.push({ entry, thought: false });
    this.routed.push(...(insight?.tokens ?? []));
    this.summary = insight?.summary ?? this.summary;
  }

  /** What is known about each token, or undefined where nothing was told. */
  insight(): Insight | undefined {
    if (this.entries.length === 0 && this.routed.length === 0) return undefined;
    const tokens = this.entries.map(({ entry, thought }, place): TokenInsight => {
      const routed = this.routed[place];
      return {
        text: entry.token,
        logprob: entry.logprob <= -9999 ? null : entry.logprob,
        top: entry.top_logprobs.map(({ token, logprob }) => [token, rounded(logprob)]),
        thought,
        experts: routed?.experts ?? null,
        drafted: routed?.drafted ?? false,
      };
    });
    return { tokens, summary: this.summary };
  }

  /** What is kept beside the text; times in ms. */
  data(now: number, withInsight = true): MessageData {
    const insight = withInsight ? this.insight() : undefined;
    return {
      model: this.model,
      finish_reason: this.finishReason,
      usage: this.usage,
      elapsed_ms: Math.round(now - this.begin),
      ...(this.leftOut > 0 ? { left_out: this.leftOut } : {}),
      ...(this.firstMs === null ? {} : { first_token_ms: Math.round(this.firstMs) }),
      ...(this.reasoning === null
        ? {}
        : { thought_ms: Math.round(this.thoughtMs ?? now - this.begin) }),
      ...(this.calls.length > 0 ? { tool_calls: this.calls.filter(Boolean) } : {}),
      ...(insight === undefined ? {} : { insight }),
    };
  }
}

function rounded(value: number): number {
  return Math.round(value * 1e4) / 1e4;
}
