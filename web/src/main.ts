import { mount } from 'svelte';
import './app.css';
import './prose.css';
import { app } from './app.svelte';
import { words } from './i18n/words.svelte';
import { preferences } from './store/preferences.svelte';
import Page from './view/Page.svelte';

preferences.applyTheme();
await words.start();
const target = document.getElementById('app');
if (target === null) throw new Error('index.html has no element #app');
mount(Page, { target });
app.start();
