/** Text into the clipboard, on pages without https too. */

/** Whether it is there now. */
export async function copyText(text: string): Promise<boolean> {
  // Browsers give no clipboard to pages over plain HTTP, except on this machine.
  if (window.isSecureContext) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch (problem) {
      if (!(problem instanceof DOMException)) throw problem; // not allowed: the old way may be
    }
  }
  const field = document.createElement('textarea');
  field.value = text;
  field.readOnly = true;
  field.className = 'hidden';
  const owner = document.querySelector('dialog[open]') ?? document.body; // the rest is inert
  owner.append(field);
  field.select();
  const isDone = document.execCommand('copy');
  field.remove();
  return isDone;
}
