/** Where chats are kept: on the server if it keeps a history, else in this browser. */

import { ApiError, json } from '../api/http';
import type { Chat, FoundChat, Message, WholeChat } from '../chat/types';
import { BrowserHistory } from './browser';
import { ServerHistory } from './server';

export interface Page {
  data: FoundChat[];
  next: string | null;
}

export interface Query {
  query?: string;
  deleted?: boolean;
  after?: string | null;
}

export interface Imported {
  chats: number;
  messages: number;
  skipped: number;
}

export type ChatPatch = Partial<Pick<Chat, 'title' | 'folder' | 'pinned' | 'options' | 'current'>>;
export type Format = 'json' | 'markdown';

/** Both places do the same; what they return is stored. */
export interface History {
  readonly place: 'server' | 'browser';
  list(query: Query): Promise<Page>;
  get(id: string): Promise<WholeChat>;
  putChat(id: string, patch: ChatPatch): Promise<Chat>;
  putMessage(chat: string, message: Message): Promise<void>;
  remove(id: string): Promise<void>;
  restore(id: string): Promise<void>;
  erase(id: string): Promise<void>;
  export(format: Format, chat?: string): Promise<Blob>;
  import(file: string): Promise<Imported>;
}

/** The history of this server, or the browser's where it keeps none. */
export async function connect(): Promise<History> {
  try {
    await json('history/chats?limit=1');
    return new ServerHistory();
  } catch (problem) {
    if (problem instanceof ApiError && problem.status === 404) return BrowserHistory.open();
    throw problem;
  }
}
