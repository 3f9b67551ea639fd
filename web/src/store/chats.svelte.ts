/** The list of chats beside the conversation: found, grouped, changed, thrown away and brought back. */

import type { Chat, FoundChat } from '../chat/types';
import { t, words } from '../i18n/words.svelte';
import { saveFile } from './documents';
import type { Format, History, Imported } from './history';

const DAY_MS = 86_400_000;
const MAX_IMPORT_BYTES = 400_000_000; // browsers hold texts of about 512 MB
const EAGER_PAGES = 4; // of 50 chats, read at once

export interface Group {
  name: string;
  kind: 'pinned' | 'folder' | 'today' | 'week' | 'older';
  chats: FoundChat[];
}

/** Chats under their headings: pinned, folders by name, then by age. */
export function grouped(chats: readonly FoundChat[], now: number): Group[] {
  const groups = new Map<string, Group>();
  const put = (name: string, kind: Group['kind'], chat: FoundChat): void => {
    const key = `${kind} ${name}`;
    const group = groups.get(key) ?? { name, kind, chats: [] };
    group.chats.push(chat);
    groups.set(key, group);
  };
  for (const chat of chats) {
    const age = now - chat.updated;
    if (chat.pinned) put('', 'pinned', chat);
    else if (chat.folder !== null && chat.folder !== '') put(chat.folder, 'folder', chat);
    else put('', age < DAY_MS ? 'today' : age < 7 * DAY_MS ? 'week' : 'older', chat);
  }
  const order = ['pinned', 'folder', 'today', 'week', 'older'];
  return [...groups.values()].sort(
    (a, b) => order.indexOf(a.kind) - order.indexOf(b.kind) || a.name.localeCompare(b.name),
  );
}

export class ChatList {
  items = $state.raw<FoundChat[]>([]);
  next = $state.raw<string | null>(null);
  query = $state('');
  trash = $state(false);
  isLoading = $state(false);
  readonly folders: string[] = $derived(
    [...new Set(this.items.flatMap((chat) => chat.folder ?? []))].sort((a, b) => a.localeCompare(b)),
  );
  private turn = 0;

  constructor(readonly history: History) {}

  /** Read the list again, as the query and the trash switch say. */
  async load(): Promise<void> {
    const turn = ++this.turn;
    this.isLoading = true;
    try {
      const found: FoundChat[] = [];
      let after: string | null = null;
      for (let page = 0; page < EAGER_PAGES; page++) {
        const asked = { query: this.query.trim(), deleted: this.trash, after };
        const got = await this.history.list(asked);
        if (turn !== this.turn) return; // a later search has begun
        found.push(...got.data);
        after = got.next;
        if (after === null) break;
      }
      this.items = found;
      this.next = after;
    } finally {
      if (turn === this.turn) this.isLoading = false;
    }
  }

  /** The next page. */
  async more(): Promise<void> {
    const asked = { query: this.query.trim(), deleted: this.trash, after: this.next };
    const { data, next } = await this.history.list(asked);
    const known = new Set(this.items.map((chat) => chat.id));
    this.items = [...this.items, ...data.filter((chat) => !known.has(chat.id))];
    this.next = next;
  }

  /** Show a chat as it is now; a new one comes first. */
  note(chat: Chat): void {
    const place = this.items.findIndex((one) => one.id === chat.id);
    if (place >= 0) {
      const rest = this.items.filter((one) => one.id !== chat.id);
      const isNewer = chat.updated > (this.items[place]?.updated ?? 0);
      rest.splice(isNewer ? 0 : place, 0, chat);
      this.items = rest;
    } else if (this.query === '' && !this.trash) {
      this.items = [chat, ...this.items];
    }
  }

  /** Change a chat that may not be open. */
  async change(id: string, patch: { title?: string; folder?: string | null; pinned?: boolean }): Promise<Chat> {
    const chat = await this.history.putChat(id, patch);
    this.items = this.items.map((one) => (one.id === id ? { ...one, ...chat } : one));
    return chat;
  }

  async remove(id: string): Promise<void> {
    await this.history.remove(id);
    this.drop(id);
  }

  async restore(id: string): Promise<void> {
    await this.history.restore(id);
    if (this.trash) this.drop(id);
    else await this.load();
  }

  async erase(id: string): Promise<void> {
    await this.history.erase(id);
    this.drop(id);
  }

  /** Give a file to the reader. */
  async export(format: Format, chat?: Chat): Promise<void> {
    const file = await this.history.export(format, chat?.id);
    const name = (chat?.title ?? 'chats').replace(/[^\p{L}\p{N} _-]/gu, '').trim().slice(0, 60) || 'chat';
    saveFile(file, `${name}.${format === 'json' ? 'json' : 'md'}`);
  }

  /** Add the chats of a file. Throws Error where it is larger than a browser can read at once. */
  async import(file: File): Promise<Imported> {
    if (file.size > MAX_IMPORT_BYTES) {
      throw new Error(t('importTooLarge', { limit: words.bytes(MAX_IMPORT_BYTES) }));
    }
    const result = await this.history.import(await file.text());
    await this.load();
    return result;
  }

  private drop(id: string): void {
    this.items = this.items.filter((chat) => chat.id !== id);
  }
}
