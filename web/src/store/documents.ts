/** Chats as files, and found by words: what the server does elsewhere, for chats kept here. */

import { currentOf, pathTo } from '../chat/tree';
import type { Chat, FoundChat, Message, WholeChat } from '../chat/types';

/** The chats as one JSON file that both places import. */
export function toExport(chats: readonly WholeChat[]): string {
  return JSON.stringify({ format: 'abyssal-history', version: 1, chats }, null, 2);
}

/** Give a file to the reader. */
export function saveFile(file: Blob, name: string): void {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(file);
  link.download = name;
  link.click();
  setTimeout(() => { URL.revokeObjectURL(link.href); }, 10_000);
}

/** The branch that is shown, to read. */
export function toMarkdown(chat: WholeChat): string {
  const parts = [`# ${chat.title}`];
  for (const message of pathTo(chat.messages, currentOf(chat.messages, chat.current))) {
    parts.push(`## ${message.role}`);
    if (message.reasoning !== null && message.reasoning !== '') {
      parts.push(message.reasoning.replace(/^/gm, '> '));
    }
    for (const { name } of message.data.attachments ?? []) parts.push(`[${name}]`);
    for (const call of message.data.tool_calls ?? []) {
      parts.push('```json\n' + `${call.function.name} ${call.function.arguments}` + '\n```');
    }
    if (message.content !== '') parts.push(message.content);
  }
  return parts.join('\n\n') + '\n';
}

/** The chat with a snippet, if every word of the query is in its title or one of its messages. */
export function matching(chat: Chat, messages: readonly Message[], query: string): FoundChat[] {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const texts = [chat.title, ...messages.map((message) => message.content)];
  const all = texts.join('\n').toLowerCase();
  if (!words.every((word) => all.includes(word))) return [];
  const first = words[0] ?? '';
  const hit = texts.slice(1).find((text) => text.toLowerCase().includes(first));
  return [hit === undefined ? chat : { ...chat, snippet: around(hit, first) }];
}

function around(text: string, word: string): string {
  const place = text.toLowerCase().indexOf(word);
  const begin = Math.max(0, place - 30);
  const cut = text.slice(begin, place + word.length + 60).replace(/\s+/g, ' ');
  return (begin > 0 ? '…' : '') + cut;
}
