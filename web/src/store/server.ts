/** The history routes of the service. */

import { ApiError, json, request, sending } from '../api/http';
import type { Chat, FoundChat, Message, WholeChat } from '../chat/types';
import type { ChatPatch, Format, History, Imported, Page, Query } from './history';
import { chatOf, wholeChatOf } from './shape';

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
    return json('history/import', sending('POST', JSON.parse(file) as unknown));
  }
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
