/// <reference types="vitest/config" />
import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig, type Plugin } from 'vite';

// KaTeX names each font in three formats; every browser that runs this page reads woff2.
const woff2Only: Plugin = {
  name: 'woff2-only',
  enforce: 'pre',
  transform(code, id) {
    if (!id.includes('katex.min.css')) return null;
    return code.replace(/,url\([^)]*\.(?:woff|ttf)\) format\("[a-z]+"\)/g, '');
  },
};

const SERVER = process.env['ABYSSAL_URL'] ?? 'http://127.0.0.1:8000'; // for `npm run dev`

export default defineConfig({
  base: './', // works under a prefix too
  plugins: [woff2Only, svelte()],
  build: {
    outDir: process.env['ABYSSAL_WEB_OUT'] ?? '../abyssal/serve/web',
    emptyOutDir: true,
    target: 'es2022',
    cssTarget: 'esnext', // light-dark() stays as it is
    assetsInlineLimit: 0, // the policy allows fonts and styles from /assets alone
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 400,
    license: { fileName: 'licenses.md' }, // of what is bundled
  },
  server: {
    proxy: Object.fromEntries(
      ['/v1', '/model', '/metrics', '/health', '/history', '/docs', '/tokenize'].map((path) => [
        path,
        { target: SERVER, changeOrigin: true, headers: { origin: SERVER } },
      ]),
    ),
  },
  resolve: process.env['VITEST'] ? { conditions: ['browser'] } : {},
  test: { environment: 'jsdom', include: ['tests/**/*.test.ts'] },
});
