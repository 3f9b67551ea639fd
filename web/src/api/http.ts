/** Requests to the service: the key, JSON, and faults as one kind of error. */

const STORED = 'abyssal.key';

/** A request that did not go well; `status` 0: the server was not reached. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly code = '',
  ) {
    super(message);
    this.name = 'ApiError';
  }
}

let needKey: () => void = () => undefined;

/** Say what shall happen when the server asks for a key. */
export function onKeyNeeded(handler: () => void): void {
  needKey = handler;
}

function key(): string {
  return sessionStorage.getItem(STORED) ?? localStorage.getItem(STORED) ?? '';
}

/** Use this key from now on; kept until the window closes, or for good. */
export function setKey(value: string, remember: boolean): void {
  forgetKey();
  (remember ? localStorage : sessionStorage).setItem(STORED, value);
}

/** Use no key from now on. */
export function forgetKey(): void {
  sessionStorage.removeItem(STORED);
  localStorage.removeItem(STORED);
}

/** Whether a key is kept here. */
export function hasKey(): boolean {
  return key() !== '';
}

/**
 * A reply that went well.
 *
 * Throws ApiError, except where the caller's own signal aborted.
 */
export async function request(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  if (key() !== '') headers.set('authorization', `Bearer ${key()}`);
  let reply: Response;
  try {
    reply = await fetch(path, { ...init, headers, cache: 'no-store' });
  } catch (problem) {
    if (init.signal?.aborted === true) throw problem;
    throw new ApiError(0, String(problem instanceof Error ? problem.message : problem), 'unreachable');
  }
  if (reply.ok) return reply;
  if (reply.status === 401) needKey();
  throw await faultOf(reply);
}

/** The JSON of a reply. */
export async function json<T>(path: string, init: RequestInit = {}): Promise<T> {
  return (await (await request(path, init)).json()) as T;
}

/** Send JSON. */
export function sending(method: string, body: unknown, more: RequestInit = {}): RequestInit {
  const headers = { 'content-type': 'application/json' };
  return { ...more, method, headers, body: JSON.stringify(body) };
}

async function faultOf(reply: Response): Promise<ApiError> {
  const text = await reply.text();
  try {
    const { error } = JSON.parse(text) as { error?: { message?: string; code?: string } };
    return new ApiError(reply.status, error?.message ?? reply.statusText, error?.code ?? '');
  } catch {
    return new ApiError(reply.status, reply.statusText || String(reply.status));
  }
}
