/** Server-sent events, as far as the service sends them: data lines, comments, blank lines. */

/** Takes text in any pieces and gives the data of the events that are complete. */
export class SseParser {
  private rest = '';
  private data: string[] = [];

  /** The data of every event that this piece completes. */
  push(text: string): string[] {
    this.rest += text;
    const events: string[] = [];
    for (;;) {
      const found = /\r\n|\n|\r(?!$)/.exec(this.rest); // a last \r may be half of a \r\n
      if (found === null) return events;
      const line = this.rest.slice(0, found.index);
      this.rest = this.rest.slice(found.index + found[0].length);
      if (line === '') {
        if (this.data.length > 0) events.push(this.data.join('\n'));
        this.data = [];
      } else if (line.startsWith('data:')) {
        this.data.push(line.slice(line[5] === ' ' ? 6 : 5));
      }
    }
  }
}

/** The data of a reply's events, in order. */
export async function* events(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const parser = new SseParser();
  const decoder = new TextDecoder();
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.releaseLock();
  }
}
