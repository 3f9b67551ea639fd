/** A text field as tall as its text, where the browser cannot do it by itself. */

import type { Attachment } from 'svelte/attachments';

const CAN_GROW = typeof CSS !== 'undefined' && CSS.supports('field-sizing', 'content');

/** An attachment that follows the text. */
export function grows(value: () => string): Attachment<HTMLTextAreaElement> {
  return (field) => {
    if (CAN_GROW) return; // app.css says so
    value();
    field.style.height = 'auto';
    field.style.height = `${field.scrollHeight + 2}px`;
  };
}
