/** Why something did not work, for the reader. */

import { ApiError } from '../api/http';
import { t } from './words.svelte';

/** The server's own words, or ours where it could not be asked. */
export function reasonOf(problem: unknown): string {
  if (problem instanceof ApiError && problem.status === 0) return t('unreachable');
  return problem instanceof Error ? problem.message : String(problem);
}
