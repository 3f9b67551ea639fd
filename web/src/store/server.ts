/** The history routes of the service. */

import { ApiError, json, request, sending } from '../api/http';
import type { Chat, FoundChat, Message, WholeChat } from '../chat/types';
import type { ChatPatch, Format, History, Imported, Page, Query } from './history';
import { chatOf, wholeChatOf } from './shape';

const MAX_PART_CHARS = 12_000_000; // the server takes 64 MiB and 8 Mi values; a letter is up to 4 bytes

/** Chats on the server. */
export class ServerHistory implements History {
  readonly place = 'server';

  async list({ query = '', deleted = false, after = null }: Query): Promise<Page> {
    const asked = new URLSearchParams({ limit: '50' });
    if (query !== '') asked.set('query', query);
    if (deleted) asked.set('deleted', 'true');
    if (after !== null) asked.set('after', after);
    const page = await json<{ data: unknown[]; next: string | null }>(`history/chats?${asked}`);
    return { data: page.data.flatMap(found), next: page.next };
  }

  async get(id: string): Promise<WholeChat> {
    return checked(wholeChatOf(await json(`history/chats/${id}`)));
  }

  async putChat(id: string, patch: ChatPatch): Promise<Chat> {
    return checked(chatOf(await json(`history/chats/${id}`, sending('PUT', patch))));
  }

  async putMessage(chat: string, message: Message): Promise<void> {
    const { id, parent, role, content, reasoning, data } = message;
    const body = { parent, role, content, reasoning, data };
    await request(`history/chats/${chat}/messages/${id}`, sending('PUT', body));
  }

  async remove(id: string): Promise<void> {
    await request(`history/chats/${id}`, { method: 'DELETE' });
  }

  async restore(id: string): Promise<void> {
    await request(`history/chats/${id}/restore`, sending('POST', {}));
  }

  async erase(id: string): Promise<void> {
    await request(`history/chats/${id}?forever=true`, { method: 'DELETE' });
  }

  async export(format: Format, chat?: string): Promise<Blob> {
    const asked = new URLSearchParams({ format, ...(chat === undefined ? {} : { chat }) });
    return (await request(`history/export?${asked}`)).blob();
  }

  async import(file: string): Promise<Imported> {
    const sum: Imported = { chats: 0, messages: 0, skipped: 0 };
    for (const part of partsOf(JSON.parse(file))) {
      const added = await json<Imported>('history/import', sending('POST', part));
      sum.chats += added.chats;
      sum.messages += added.messages;
      sum.skipped += added.skipped;
    }
    return sum;
  }
}

/**
 * An export in parts that the server takes: the same object around some of its chats.
 *
 * The oldest chats come last in a file and are sent first, as one import of all adds them.
 */
export function partsOf(saved: unknown, most = MAX_PART_CHARS): unknown[] {
  const chats = (saved as { chats?: unknown } | null)?.chats;
  if (!Array.isArray(chats)) return [saved]; // the server says what is wrong with it
  const parts: unknown[][] = [[]];
  let size = 0;
  for (const chat of (chats as unknown[]).toReversed()) {
    const more = JSON.stringify(chat).length;
    if (size > 0 && size + more > most) {
      parts.push([]);
      size = 0;
    }
    parts.at(-1)?.unshift(chat);
    size += more;
  }
  return parts.map((part) => ({ ...(saved as object), chats: part }));
}

function found(value: unknown): FoundChat[] {
  const chat = chatOf(value);
  if (chat === null) return [];
  const { snippet } = value as { snippet?: unknown };
  return [typeof snippet === 'string' ? { ...chat, snippet } : chat];
}

function checked<T>(value: T | null): T {
  if (value === null) throw new ApiError(502, 'the server sent no chat', 'bad_reply');
  return value;
}
