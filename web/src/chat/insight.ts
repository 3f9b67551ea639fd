/** What can be said about the tokens of answers: probabilities, loads of experts, sizes of caches. */

import type { Message, Summary, TokenInsight } from './types';

/** Probability of a token in 0..1; 0 where it was outside the likeliest. */
export function probability(logprob: number | null): number {
  return logprob === null ? 0 : Math.exp(Math.min(0, logprob));
}

/** How warm a token is shown, 0 (certain) to 9 (hardly likely). */
export function warmth(logprob: number | null): number {
  return Math.min(9, Math.floor((1 - probability(logprob)) * 10));
}

/** How often each expert of each layer was met: layers by experts. */
export function countExperts(
  tokens: readonly TokenInsight[],
  numLayers: number,
  numExperts: number,
): number[][] {
  const counts = Array.from({ length: numLayers }, () => Array<number>(numExperts).fill(0));
  for (const { experts } of tokens) {
    experts?.slice(0, numLayers).forEach((chosen, layer) => {
      const row = counts[layer];
      for (const expert of chosen) {
        if (row?.[expert] !== undefined) row[expert] += 1;
      }
    });
  }
  return counts;
}

/** The greatest load of a layer over the mean of its experts; 0 for an empty layer. */
export function busiest(counts: readonly number[]): number {
  const sum = counts.reduce((all, count) => all + count, 0);
  return sum === 0 ? 0 : (Math.max(...counts) * counts.length) / sum;
}

/** All tokens of a conversation's answers. */
export function tokensOf(path: readonly Message[]): TokenInsight[] {
  return path.flatMap((message) => message.data.insight?.tokens ?? []);
}

/** Layers and experts to draw: as the summary says, else as the tokens show. */
export function shapeOf(
  tokens: readonly TokenInsight[],
  summary: Summary | null,
): { layers: number[]; numExperts: number } {
  const routed = tokens.find((token) => token.experts !== null)?.experts ?? [];
  const layers =
    summary !== null && summary.moe_layers.length > 0 ? summary.moe_layers : routed.map((_, n) => n);
  if (summary !== null && summary.n_routed_experts > 0) {
    return { layers, numExperts: Math.min(4096, summary.n_routed_experts) };
  }
  let largest = -1;
  for (const { experts } of tokens) {
    for (const row of experts ?? []) for (const expert of row) largest = Math.max(largest, expert);
  }
  return { layers, numExperts: Math.min(4096, largest + 1) };
}

/** A token's text as it can be seen: what leaves no mark has a sign, a lone accent a circle. */
export function visibleText(text: string): string {
  const bytes = /^bytes:((?:\\x[0-9a-f]{2})+)$/.exec(text)?.[1]; // a part of a letter
  const marked = (bytes ?? text).replace(/\p{Cc}/gu, sign).replace(/^\p{M}/u, '◌$&');
  return /^[\p{Z}\p{DI}]*$/u.test(marked) ? Array.from(marked, sign).join('') || '∅' : marked;
}

const SIGNS: Readonly<Record<string, string>> = { '\n': '⏎', '\t': '⇥', ' ': '␣', '\x7f': '␡' };

function sign(letter: string): string {
  const code = letter.codePointAt(0) ?? 0;
  if (code < 0x20) return SIGNS[letter] ?? String.fromCodePoint(0x2400 + code);
  return SIGNS[letter] ?? `U+${code.toString(16).toUpperCase().padStart(4, '0')}`;
}
