// The page: search, filters, the three views, the panel, and what the address means.

const controls = Object.fromEntries(['search', 'label', 'colour', 'drawn'].map((id) => [id, byId(id)]));
const state = { view: 'map', open: null, shown: new Set(images), scrolled: { map: 0, clusters: 0, images: 0 } };
const MOST_LISTED = 60;

const groups = summary.central.map((rows, index) => {
  const shares = new Map();
  const labelled = rows.filter((row) => labelOf(row));
  for (const row of labelled) shares.set(labelOf(row), (shares.get(labelOf(row)) || 0) + 1);
  const labels = [...shares].map(([name, uses]) => ({ name, share: uses / labelled.length })).sort((a, b) => b.share - a.share);
  return { index, rows, labels, name: `Cluster ${index + 1}` };
});

const colourOf = (image) => {
  if (!hasLabels || controls.colour.value === 'group') return summary.group_colours[image.group];
  const label = summary.labels[image.index];
  return label < 0 ? '#999999' : summary.label_colours[label];
};
let colours = [];

let bitmaps = [];
const map = itemMap(byId('map-canvas'), byId('tip'), {
  items: images,
  cell: summary.cell,
  size: 1.15,
  pictureOf: ({ index }) => (bitmaps.length ? [bitmaps[Math.floor(index / PER_SHEET)], ...cornerOf(index)] : null),
  describe: (image) => [[image.name, image.label, `cluster ${image.group + 1}`].filter(Boolean).join(' · ')],
  address: (image) => `#image=${image.index}`,
  look() {
    const { kind, item } = state.open || {};
    return {
      shown: state.shown,
      colours,
      dots: controls.drawn.value === 'dots',
      faded: (image) => kind === 'cluster' && image.group !== item.index,
      front: kind === 'image' ? [item, ...neighboursOf(item.index).map(({ image }) => image)] : [],
    };
  },
});
Promise.all(sheetLines.map((_, which) => sheet(which))).then((all) => { bitmaps = all; map.redraw(); });

const imageGallery = gallery(byId('image-grid'), {
  least: 112,
  lines: 2,
  build(image, width) {
    const link = make('a', { href: `#image=${image.index}`, 'aria-label': [image.name, image.label].filter(Boolean).join(', ') });
    const picture = pictureOf(image.index, width);
    picture.classList.add('picture');
    link.append(picture, make('span', { class: 'line' }, labelSpan(image.name.split('/').pop())), make('span', { class: 'line' }, labelSpan(image.label)));
    return link;
  },
});

function spot(colour) {
  const dot = make('i', { class: 'spot' });
  dot.style.background = colour;
  return dot;
}

const tile = (image, kind, ...lines) => make('li', {}, make('a', { href: `#image=${image.index}`, title: image.name, 'aria-label': [image.name, image.label].filter(Boolean).join(', ') }, pictureOf(image.index, kind === 'sheet' ? 64 : 96), ...lines));

const labelsInWords = (group) => group.labels.slice(0, 3).map(({ name, share }) => `${name} ${percent(share)}`).join(', ');

/** A card for each cluster: its most central images, and its labels. */
function fillGroups() {
  byId('group-view').replaceChildren(...groups.map((group) => make('section', { class: 'group' },
    make('h3', {}, spot(summary.group_colours[group.index]), make('a', { href: `#cluster=${group.index}` }, group.name), make('span', {}, `${count(group.rows.length)} images`)),
    make('p', {}, labelsInWords(group)),
    make('ul', { class: 'sheet' }, ...group.rows.slice(0, 12).map((row) => tile(images[row], 'sheet'))),
  )));
}

function fillLegend() {
  const byLabel = hasLabels && controls.colour.value === 'label';
  const entries = byLabel ? summary.label_names.map((name, index) => [name, summary.label_colours[index]]) : groups.map((group) => [group.labels.length ? `${group.index + 1} ${group.labels[0].name}` : group.name, summary.group_colours[group.index]]);
  byId('legend').replaceChildren(...entries.map(([name, colour]) => make('li', {}, spot(colour), labelSpan(name))));
}

function refresh() {
  const query = controls.search.value.trim().toLowerCase();
  const list = images.filter((image) =>
    (!controls.label.value || image.label === controls.label.value) &&
    (!query || image.name.toLowerCase().includes(query) || image.label.toLowerCase().includes(query)));
  state.shown = new Set(list);
  colours = images.map(colourOf);
  imageGallery.fill(list);
  fillLegend();
  showStatus();
}

function showStatus() {
  const found = state.shown.size;
  const inGroups = state.view === 'clusters';
  byId('status').textContent = inGroups ? `${count(groups.length)} clusters` : found === number ? `${count(number)} images` : `${count(found)} of ${count(number)} images`;
  byId('empty').hidden = inGroups || found > 0;
  byId('map-view').hidden = state.view !== 'map' || !found;
  byId('group-view').hidden = !inGroups;
  byId('image-grid').hidden = state.view !== 'images' || !found;
  if (state.view === 'images' && found) imageGallery.layout();
  map.redraw();
}

/** Parse the address: #map, #clusters, #images, #image=3 or #cluster=2. */
function parseAddress() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const item = (name, list) => (/^\d+$/.test(parts.get(name) || '') ? list[Number(parts.get(name))] : undefined);
  const image = item('image', images);
  const group = item('cluster', groups);
  if (image) return { kind: 'image', item: image };
  if (group) return { kind: 'cluster', item: group };
  return { kind: ['clusters', 'images'].find((view) => parts.has(view)) || (parts.has('map') || !location.hash ? 'map' : state.view) };
}

function imageContent(image) {
  const list = neighboursOf(image.index);
  const tiles = list.map(({ image: other, cosine }) => {
    const same = image.label && other.label === image.label;
    const item = tile(other, 'near', make('span', { class: 'line' }, make('b', {}, cosine.toFixed(3)), cosine > summary.nearly_identical ? make('span', { class: 'twin' }, 'nearly identical') : null), make('span', { class: 'line' }, labelSpan(other.label || other.name.split('/').pop())));
    item.classList.toggle('same', Boolean(same));
    return item;
  });
  const agree = image.label ? `${list.filter(({ image: other }) => other.label === image.label).length} of ${list.length} have its label.` : '';
  const group = groups[image.group];
  const link = make('p', {}, make('a', { href: `#cluster=${group.index}` }, `${group.name}, ${count(group.rows.length)} images`));
  return [
    make('div', { class: 'shown' }, pictureOf(image.index, 288)),
    make('dl', { class: 'figures' }, figure('label', image.label || '–'), figure('cosine of the nearest', list.length ? list[0].cosine.toFixed(3) : '–')),
    section('Nearest images', `With the cosine. ${agree}`.trim(), make('ul', { class: 'tiles near' }, ...tiles)),
    section('Its cluster', null, link, make('ul', { class: 'sheet' }, ...group.rows.slice(0, 12).map((row) => tile(images[row], 'sheet')))),
  ];
}

function groupContent(group) {
  const parts = [make('dl', { class: 'figures' }, figure('images', count(group.rows.length)))];
  if (group.labels.length) parts[0].append(figure('purity: share of its most frequent label', percent(group.labels[0].share)));
  if (group.labels.length) parts.push(section('Labels', null, shareBars(group.labels.slice(0, 12))));
  const more = group.rows.length > MOST_LISTED ? ` The ${MOST_LISTED} most central:` : '';
  parts.push(section('Images', `The most central first.${more}`, make('ul', { class: 'sheet' }, ...group.rows.slice(0, MOST_LISTED).map((row) => tile(images[row], 'sheet')))));
  return parts;
}

const page = explore({
  state,
  controls,
  headings: { map: 'Map', clusters: 'Clusters', images: 'Images' },
  unsearched: 'clusters',
  searched: 'images',
  parse: parseAddress,
  refresh,
  shown: showStatus,
  name: ({ item }) => item.name,
  subject: ({ item }) => [make('span', { class: 'words name', dir: 'auto', title: item.name }, item.name)],
  content: ({ kind, item }) => (kind === 'image' ? imageContent(item) : groupContent(item)),
  order: (kind) => (kind === 'image' ? imageGallery.items : groups),
  choose(open) {
    const image = open && open.kind === 'image' ? open.item : null;
    imageGallery.choose(image);
    if (image) map.reveal(image, false);
    map.redraw();
  },
  enter() {
    if (state.view === 'images') imageGallery.focus();
    else byId(state.view === 'map' ? 'map-canvas' : 'heading').focus();
  },
  leave({ kind, item }) {
    if (state.view === 'map') byId('map-canvas').focus({ preventScroll: true });
    else if (state.view === 'images') { imageGallery.layout(); imageGallery.focus(); }
    else if (kind === 'cluster') document.querySelector(`#group-view a[href="#cluster=${item.index}"]`).focus();
    else byId('heading').focus({ preventScroll: true });
  },
});

function start() {
  const facts = [];
  const share = (value) => `${(100 * value).toFixed(1)}\u202f%`;
  if (summary.agreement) facts.push(`Of the ${summary.compared} nearest images of each, ${share(summary.agreement[0])} have its label; chance is ${share(summary.agreement[1])}.`);
  if (summary.purity) facts.push(`The images have ${count(summary.label_names.length)} labels and are in ${count(groups.length)} clusters: ${share(summary.purity[0])} have their cluster’s most frequent label; with shuffled labels ${share(summary.purity[1])}.`);
  byId('key').textContent = facts.join(' ');
  byId('key').hidden = !facts.length;
  if (!hasLabels) for (const pair of document.querySelectorAll('.pair[data-needs]')) pair.hidden = true;
  for (const name of summary.label_names) controls.label.append(make('option', { value: name }, name));
  setUpScheme();
  fillGroups();
  refresh();
  page.show('map');
  page.follow();
}

start();
