// The page: search, sorting, filters, its views, and what the address means.

const controls = Object.fromEntries(['search', 'sort', 'shown', 'label', 'purity', 'drawn'].map((id) => [id, byId(id)]));
const state = { view: 'codes', reversed: false, open: null, scrolled: { codes: 0, map: 0, images: 0 } };

const codeGallery = gallery(byId('code-grid'), {
  least: 128,
  lines: 2,
  build(code, width) {
    const most = code.labels[0];
    const facts = [`Code ${code.index}`, code.uses ? `used ${times(code.uses)}` : 'unused'];
    if (most) facts.push(`mostly ${most.name}`);
    if (code.purity !== null) facts.push(`purity ${percent(code.purity)}`);
    const link = make('a', { href: `#code=${code.index}`, 'aria-label': facts.join(', ') });
    if (detail(code.index).patches.length) {
      const canvas = make('canvas', { class: 'picture', 'aria-hidden': 'true' });
      drawTile(canvas, code.index, width);
      link.append(canvas);
    } else {
      link.append(make('span', { class: 'picture unused' }, code.uses ? 'no patches' : 'unused'));
    }
    const byEntropy = controls.sort.value === 'entropy' || !hasLabels;
    const figure = byEntropy ? (code.entropy === null ? '' : `${code.entropy.toFixed(2)} bits`) : (code.purity === null ? '' : percent(code.purity));
    link.append(
      make('span', { class: 'line' }, make('b', {}, String(code.index)), make('span', {}, code.uses ? count(code.uses) : '–')),
      make('span', { class: 'line' }, labelSpan(most ? most.name : ''), make('span', {}, figure)),
    );
    return link;
  },
});

const imageGallery = gallery(byId('image-grid'), {
  least: 128,
  lines: 2,
  build(image) {
    const link = make('a', { href: `#image=${image.index}`, 'aria-label': [image.name, image.label].filter(Boolean).join(', ') });
    const picture = make('img', { class: 'picture', src: imageLines[image.index][0], alt: '', decoding: 'async' });
    picture.addEventListener('load', () => picture.classList.toggle('pixels', picture.naturalWidth <= 64));
    link.append(picture, make('span', { class: 'line' }, labelSpan(image.name)), make('span', { class: 'line' }, labelSpan(image.label || ''), make('span', {}, `${new Set(image.tokens).size} codes`)));
    return link;
  },
});
const galleries = { codes: codeGallery, map: codeMap(() => state.open), images: imageGallery };

const keys = {
  codes: !totalUses ? '' : hasLabels ? 'Below each code: its number and uses, its most frequent label and that label’s share (purity).' : 'Below each code: its number, uses and entropy over positions.',
  map: mapped.length ? `Similar codes are near each other, by ${summary.map.method}. A frame or dot has the colour of its code in token maps.` : '',
  images: '',
};

/** Return the codes that match the search and the filters, sorted. */
function matchingCodes() {
  const query = controls.search.value.trim().toLowerCase();
  const least = controls.purity.value / 100;
  const label = controls.label.value;
  const shown = controls.shown.value;
  const matches = (code) =>
    (shown === 'all' || (shown === 'used') === code.uses > 0) &&
    (!least || (code.purity !== null && code.purity >= least)) &&
    (!label || (code.labels.length > 0 && code.labels[0].name === label)) &&
    (!query || String(code.index).startsWith(query) || code.labels.some(({ name }) => name.toLowerCase().includes(query)));
  const key = controls.sort.value;
  const leastFirst = key === 'index' || key === 'entropy'; // lowest entropy first
  const sign = leastFirst === state.reversed ? -1 : 1;
  const compare = (a, b) => {
    const [x, y] = [a[key], b[key]];
    if (x === null || y === null) return (x === null) - (y === null) || a.index - b.index;
    return sign * (x - y) || a.index - b.index;
  };
  const list = codes.filter(matches).sort(compare);
  const exact = list.findIndex((code) => String(code.index) === query);
  if (exact > 0) list.unshift(...list.splice(exact, 1));
  return list;
}

function refresh() {
  const list = matchingCodes();
  byId('least').textContent = Number(controls.purity.value) ? `${controls.purity.value}\u202f% +` : 'any';
  const ascending = (controls.sort.value === 'index' || controls.sort.value === 'entropy') !== state.reversed;
  byId('arrow').textContent = ascending ? '↑' : '↓';
  codeGallery.fill(list);
  galleries.map.fill(list);
  showStatus();
}

/** Show the number of visible tiles; a screen reader reads it too. */
function showStatus() {
  const { view } = state;
  const number = galleries[view].items.length;
  const all = { codes, map: mapped, images }[view].length;
  const noun = view === 'images' ? 'image' : 'code';
  byId('status').textContent = number === all ? `${count(all)} ${noun}${all === 1 ? '' : 's'}` : `${count(number)} of ${count(all)} ${noun}s`;
  byId('empty').hidden = number > 0;
  byId('none').textContent = `No ${noun} matches.`;
  byId('code-grid').hidden = view !== 'codes' || !number;
  byId('map-view').hidden = view !== 'map' || !number;
  byId('image-grid').hidden = view !== 'images' || !number;
  if (view === 'codes' && number) codeGallery.layout();
}

function showView(view) {
  for (const pair of document.querySelectorAll('.pair[data-view]')) pair.hidden = pair.dataset.view !== view;
  byId('key').textContent = keys[view];
  byId('key').hidden = !keys[view];
  showStatus();
  galleries[view].layout();
}

/**
 * Parse the address: #codes, #map, #images, #code=12, #image=3, #image=3&with=12 (mark code 12) or
 * #image=3&patch=2,5 (compare the patch in row 2, column 5).
 */
function parseAddress() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const number = (name, list) => (/^\d+$/.test(parts.get(name) || '') ? list[Number(parts.get(name))] : undefined);
  const code = number('code', codes);
  const image = number('image', images);
  const marked = number('with', codes);
  if (code) return { kind: 'code', item: code };
  if (image) return { kind: 'image', item: image, marked: marked ? marked.index : -1, patch: patchOf(image, parts.get('patch') || '') };
  if (parts.has('map') && mapped.length) return { kind: 'map' };
  return { kind: parts.has('images') && images.length ? 'images' : 'codes' };
}

const page = explore({
  state,
  controls,
  headings: { codes: 'Codes', map: 'Map', images: 'Images' },
  unsearched: 'images',
  searched: 'codes',
  parse: parseAddress,
  refresh,
  shown: showView,
  name: ({ kind, item }) => (kind === 'code' ? `Code ${item.index}` : item.name),
  subject: ({ kind, item }) => (kind === 'code' ? codeTitle(item) : [make('span', { class: 'words name', dir: 'auto', title: item.name }, item.name)]),
  content: ({ kind, item, marked, patch }) => (kind === 'code' ? codeContent(item) : imageContent(item, marked, patch)),
  order: (kind) => (kind === 'code' ? codeGallery.items : images),
  choose(open) {
    const code = open && open.kind === 'code' ? open.item : null;
    codeGallery.choose(code);
    galleries.map.choose(code);
    imageGallery.choose(code ? null : open && open.item);
  },
  enter: () => galleries[state.view].focus(),
  leave() {
    galleries[state.view].layout();
    galleries[state.view].focus();
  },
});

byId('reverse').addEventListener('click', () => {
  state.reversed = !state.reversed;
  byId('reverse').setAttribute('aria-pressed', state.reversed);
  refresh();
});

function start() {
  const used = codes.filter((code) => code.uses).length;
  byId('lede').textContent += used ? ` ${count(used)} are used (${percent(used / codes.length)}).` : ' None of them is used.';
  if (!hasLabels) {
    for (const pair of document.querySelectorAll('.pair[data-needs]')) pair.hidden = true;
    document.querySelector('option[data-needs]').remove();
  }
  const names = new Set(codes.filter((code) => code.labels.length).map((code) => code.labels[0].name));
  for (const name of [...names].sort((a, b) => a.localeCompare(b, 'en', { numeric: true }))) controls.label.append(make('option', { value: name }, name));
  document.querySelector('[data-view="map"]').hidden = !mapped.length;
  document.querySelector('[data-view="images"]').hidden = !images.length;
  byId('views').hidden = !images.length && !mapped.length;
  setUpScheme();
  if (new URLSearchParams(location.hash.slice(1)).has('image') && images.length) state.view = 'images';
  imageGallery.fill(images);
  refresh();
  page.show(state.view);
  page.follow();
}

start();
