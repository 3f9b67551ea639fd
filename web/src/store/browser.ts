/** Chats in this browser (IndexedDB), for servers that keep no history. */

import { ApiError } from '../api/http';
import { inOrder } from '../chat/tree';
import type { Chat, FoundChat, Message, WholeChat } from '../chat/types';
import { matching, toExport, toMarkdown } from './documents';
import type { ChatPatch, Format, History, Imported, Page, Query } from './history';
import { chatOf, messageOf, wholeChatOf } from './shape';

const NAME = 'abyssal';
const PAGE = 50;

type StoredMessage = Message & { chat: string };

function done<T>(asked: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    asked.onsuccess = () => { resolve(asked.result); };
    asked.onerror = () => { reject(new ApiError(0, String(asked.error), 'browser_storage')); };
  });
}

/** Chats in this browser. */
export class BrowserHistory implements History {
  readonly place = 'browser';

  private constructor(private readonly database: IDBDatabase) {}

  /** Open or make the database. Throws ApiError where the browser allows none. */
  static async open(): Promise<BrowserHistory> {
    const asked = indexedDB.open(NAME, 1);
    asked.onupgradeneeded = () => {
      asked.result.createObjectStore('chats', { keyPath: 'id' });
      asked.result.createObjectStore('messages', { keyPath: 'id' }).createIndex('chat', 'chat');
    };
    return new BrowserHistory(await done(asked));
  }

  private store(name: 'chats' | 'messages', mode: IDBTransactionMode = 'readonly'): IDBObjectStore {
    return this.database.transaction(name, mode).objectStore(name);
  }

  private async chats(): Promise<Chat[]> {
    const rows = (await done(this.store('chats').getAll())) as unknown[];
    return rows.map(chatOf).filter((chat) => chat !== null);
  }

  private async messages(chat: string): Promise<Message[]> {
    const rows = (await done(this.store('messages').index('chat').getAll(chat))) as unknown[];
    return inOrder(rows.map(messageOf).filter((message) => message !== null));
  }

  private async chat(id: string): Promise<Chat> {
    const chat = chatOf(await done(this.store('chats').get(id) as IDBRequest<unknown>));
    if (chat === null) throw new ApiError(404, `there is no chat ${id}`, 'chat_not_found');
    return chat;
  }

  private async change(id: string, patch: Partial<Chat>): Promise<Chat> {
    const chat = { ...(await this.chat(id)), ...patch };
    await done(this.store('chats', 'readwrite').put(chat));
    return chat;
  }

  async list({ query = '', deleted = false, after = null }: Query): Promise<Page> {
    const chats = (await this.chats()).filter((chat) => (chat.deleted !== null) === deleted);
    chats.sort((a, b) => Number(b.pinned) - Number(a.pinned) || b.updated - a.updated);
    const found: FoundChat[] = [];
    for (const chat of chats) {
      if (query === '') found.push(chat);
      else found.push(...matching(chat, await this.messages(chat.id), query));
    }
    const start = Number(after ?? 0);
    const next = start + PAGE < found.length ? String(start + PAGE) : null;
    return { data: found.slice(start, start + PAGE), next };
  }

  async get(id: string): Promise<WholeChat> {
    return { ...(await this.chat(id)), messages: await this.messages(id) };
  }

  async putChat(id: string, patch: ChatPatch): Promise<Chat> {
    const now = Date.now();
    const known = (await done(this.store('chats').get(id) as IDBRequest<unknown>)) as Chat | undefined;
    const fresh: Chat = {
      id, title: '', folder: null, pinned: false, options: {}, current: null,
      created: now, updated: now, deleted: null,
    };
    const chat = { ...(known ?? fresh), ...patch };
    await done(this.store('chats', 'readwrite').put(plain(chat)));
    return chat;
  }

  async putMessage(chat: string, message: Message): Promise<void> {
    const row: StoredMessage = { ...message, chat };
    await done(this.store('messages', 'readwrite').put(plain(row)));
    await this.change(chat, { current: message.id, updated: Date.now() });
  }

  async remove(id: string): Promise<void> {
    await this.change(id, { deleted: Date.now() });
  }

  async restore(id: string): Promise<void> {
    await this.change(id, { deleted: null });
  }

  async erase(id: string): Promise<void> {
    const messages = this.store('messages', 'readwrite');
    const keys = await done(messages.index('chat').getAllKeys(id));
    for (const key of keys) messages.delete(key);
    await done(this.store('chats', 'readwrite').delete(id));
  }

  async export(format: Format, chat?: string): Promise<Blob> {
    const ids = chat === undefined ? (await this.chats()).map((one) => one.id) : [chat];
    const whole = await Promise.all(ids.map((id) => this.get(id)));
    const [text, type] =
      format === 'json'
        ? [toExport(whole), 'application/json']
        : [whole.map(toMarkdown).join('\n---\n\n'), 'text/markdown'];
    return new Blob([text], { type });
  }

  async import(file: string): Promise<Imported> {
    const { chats } = JSON.parse(file) as { chats?: unknown };
    if (!Array.isArray(chats)) throw new ApiError(400, 'the file has no list "chats"', 'invalid_body');
    const known = new Set((await this.chats()).map((chat) => chat.id));
    const result: Imported = { chats: 0, messages: 0, skipped: 0 };
    for (const value of chats) {
      const whole = wholeChatOf(value);
      if (whole === null || known.has(whole.id)) {
        result.skipped += 1;
        continue;
      }
      const { messages, ...chat } = whole;
      await done(this.store('chats', 'readwrite').put(chat));
      for (const message of messages) {
        await done(this.store('messages', 'readwrite').put({ ...message, chat: chat.id }));
      }
      result.chats += 1;
      result.messages += messages.length;
    }
    return result;
  }
}

/** Without the proxies of the page's state, which no database can clone. */
function plain<T>(value: T): T {
  return JSON.parse(JSON.stringify(value)) as T;
}
