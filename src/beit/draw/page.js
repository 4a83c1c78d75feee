// What every page uses: elements, numbers in words, drawing when there is time, light and dark.
'use strict';

const byId = (id) => document.getElementById(id);

/** Create an element; strings become text, so that names and labels are never parsed as markup. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Return the lines of a data element, and remove it from the document. */
function takeLines(id) {
  const text = byId(id).textContent;
  byId(id).remove();
  return text.split('\n').slice(1, -1);
}

const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
const count = (value) => value.toLocaleString('en-GB');
const percent = (share) => (share > 0 && share < 0.001 ? '<0.1' : (100 * share).toFixed(share < 0.0995 ? 1 : 0)) + '\u202f%';
// A name keeps its own text direction (Arabic, Hebrew).
const labelSpan = (text, kind = 'long') => make('span', { class: kind, dir: 'auto', title: text }, text);

const section = (title, text, ...children) => make('section', {}, make('h3', {}, title), text ? make('p', {}, text) : null, ...children);
const figure = (name, value, unit = '') => make('div', {}, make('dt', {}, name), make('dd', {}, value, unit ? make('small', {}, ' ' + unit) : null));

/** List names with their shares [{ name, share }] as bars, the largest as long as there is room. */
function shareBars(labels) {
  const largest = Math.max(...labels.map(({ share }) => share), 0.001);
  const rows = labels.map(({ name, share }) => {
    const bar = make('i');
    bar.style.width = `${(100 * share) / largest}%`;
    return make('li', {}, labelSpan(name), make('span', { class: 'rail' }, bar), make('span', { class: 'share' }, percent(share)));
  });
  return make('ul', { class: 'bars' }, ...rows);
}

/** Cache the latest results of a function of one number. */
function cached(compute, most) {
  const kept = new Map();
  return (key) => {
    let value = kept.get(key);
    if (value === undefined) value = compute(key);
    else kept.delete(key);
    kept.set(key, value);
    if (kept.size > most) kept.delete(kept.keys().next().value);
    return value;
  };
}

function bytesOf(encoded) {
  const text = atob(encoded);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// A stack of drawing tasks: after a long scroll the visible pictures are drawn first.
const tasks = [];
let workers = 0;

function schedule(canvas, draw) {
  tasks.push([canvas, draw]);
  if (workers < 4) work();
}

async function work() {
  workers += 1;
  await null; // wait until the canvas is in the document
  for (let next = tasks.pop(); next; next = tasks.pop()) {
    const [canvas, draw] = next;
    if (canvas.isConnected) await draw().catch((error) => console.error(error));
  }
  workers -= 1;
}

function scaled(canvas, side) {
  const size = Math.round(side * Math.min(2, window.devicePixelRatio || 1));
  canvas.width = canvas.height = size;
  return [canvas.getContext('2d'), size];
}

/** Set up the colour scheme switch; the system's scheme is used until the switch is clicked. */
function setUpScheme() {
  const dark = window.matchMedia('(prefers-color-scheme: dark)');
  const root = document.documentElement;
  const current = () => root.dataset.scheme || (dark.matches ? 'dark' : 'light');
  const showOther = () => {
    const [icon, label] = byId('scheme').children;
    [icon.textContent, label.textContent] = current() === 'dark' ? ['☼', 'Light page'] : ['☾', 'Dark page'];
  };
  byId('scheme').addEventListener('click', () => {
    root.dataset.scheme = current() === 'dark' ? 'light' : 'dark';
    showOther();
  });
  dark.addEventListener('change', showOther);
  showOther();
}
