/** Functions for the model, as a reader types them. */

import type { ToolDefinition } from './types';

/**
 * The tools of a JSON text: a list in the API's form, or of bare functions.
 *
 * Throws Error with what is wrong.
 */
export function parseTools(text: string): ToolDefinition[] {
  if (text.trim() === '') return [];
  const value = JSON.parse(text) as unknown;
  const list = Array.isArray(value) ? (value as unknown[]) : [value];
  return list.map((item, place) => {
    if (typeof item !== 'object' || item === null) throw new Error(`[${place}]`);
    const named = 'function' in item ? item.function : item;
    if (typeof named !== 'object' || named === null || !('name' in named)) {
      throw new Error(`[${place}].function.name`);
    }
    if (typeof named.name !== 'string' || !/^[\w-]{1,64}$/.test(named.name)) {
      throw new Error(`[${place}].function.name`);
    }
    return { type: 'function', function: { ...named, name: named.name } };
  });
}
