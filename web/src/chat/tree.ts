/** A chat's messages as a tree: every edit and every new answer is a branch. */

import type { Message } from './types';

/** From the first message to `current`; nothing where it is unknown. */
export function pathTo(messages: readonly Message[], current: string | null): Message[] {
  const known = new Map(messages.map((message) => [message.id, message]));
  const path: Message[] = [];
  const seen = new Set<string>(); // an imported chat may hold a ring
  for (let id = current; id !== null && !seen.has(id); ) {
    const message = known.get(id);
    if (message === undefined) break;
    seen.add(id);
    path.push(message);
    id = message.parent;
  }
  return path.reverse();
}

/** Messages by their parent, oldest first. */
export type Branches = ReadonlyMap<string | null, readonly Message[]>;

/** What follows each message; null: what a chat begins with. */
export function branchesOf(messages: readonly Message[]): Branches {
  const found = new Map<string | null, Message[]>();
  for (const message of messages) {
    const row = found.get(message.parent);
    if (row === undefined) found.set(message.parent, [message]);
    else row.push(message);
  }
  return found;
}

/** The newest end of the branch that begins at `id`. */
export function leafBelow(messages: readonly Message[], id: string): string {
  const seen = new Set<string>();
  let leaf = id;
  for (;;) {
    seen.add(leaf);
    const next = messages.findLast((message) => message.parent === leaf);
    if (next === undefined || seen.has(next.id)) return leaf;
    leaf = next.id;
  }
}

/** Where a chat goes on: its `current` if that is there, else the newest leaf. */
export function currentOf(messages: readonly Message[], current: string | null): string | null {
  if (current !== null && messages.some((message) => message.id === current)) return current;
  return messages.at(-1)?.id ?? null;
}

/** The neighbor of a message among those at its place, or null at the end. */
export function neighbor(branches: Branches, message: Message, step: 1 | -1): Message | null {
  const row = branches.get(message.parent) ?? [];
  const place = row.findIndex((other) => other.id === message.id);
  return row[place + step] ?? null;
}

/** Messages by the time they were made, each behind its parent: two may be of one millisecond. */
export function inOrder(messages: readonly Message[]): Message[] {
  const known = new Map(messages.map((message) => [message.id, message]));
  const placed = new Set<string>();
  const order: Message[] = [];
  for (const last of [...messages].sort((a, b) => a.created - b.created)) {
    const missing: Message[] = [];
    for (let one: Message | undefined = last; one !== undefined && !placed.has(one.id); ) {
      placed.add(one.id);
      missing.push(one);
      one = known.get(one.parent ?? '');
    }
    order.push(...missing.reverse());
  }
  return order;
}
