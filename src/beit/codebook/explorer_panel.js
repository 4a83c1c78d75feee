// The panel of a code, and the codes of an image.

const MOST_LISTED = 24;

/** The images of the page that contain a code: imagesWith.get(code) = [[image, uses], …]. */
const imagesWith = new Map();
for (const image of images) {
  for (const [code, number] of usesOf(image)) {
    if (!imagesWith.has(code)) imagesWith.set(code, []);
    imagesWith.get(code).push([image, number]);
  }
}
for (const list of imagesWith.values()) list.sort((a, b) => b[1] - a[1]);

/** Count the codes of an image: a map from code to uses. */
function usesOf(image) {
  const uses = new Map();
  for (const code of image.tokens) uses.set(code, (uses.get(code) || 0) + 1);
  return uses;
}

function codeTitle(code) {
  const swatch = make('span', { class: 'swatch', title: 'its colour in token maps' });
  swatch.style.background = colourOf(code.index);
  return [swatch, make('span', { class: 'words' }, `Code ${code.index}`)];
}

function codeContent(code) {
  const parts = [codeFigures(code)];
  if (!code.uses) {
    parts.push(section('Unused', 'No patch of these images has this code.'));
  }
  const record = detail(code.index);
  if (record.patches.length) parts.push(codePatches(code, record));
  if (code.labels.length) parts.push(codeLabels(code));
  if (record.neighbours.length) {
    const words = cosineWords(record.neighbours.map(([, cosine]) => cosine));
    const tiles = record.neighbours.map(([index], which) => codeTile(index, words[which], `cosine ${words[which]}`));
    parts.push(section('Nearest codes', 'With the cosine of their vectors.', make('ul', { class: 'tiles codes' }, ...tiles)));
  }
  if (code.uses) parts.push(codePositions(code, record));
  const containing = imagesWith.get(code.index) || [];
  if (containing.length) {
    const tiles = containing.slice(0, MOST_LISTED).map(([image, number]) => {
      const canvas = make('canvas', { 'aria-hidden': 'true' });
      drawPlaces(canvas, image, code.index, 90);
      const link = make('a', { href: `#image=${image.index}&with=${code.index}`, 'aria-label': `${image.name}: ${times(number)}` }, canvas,
        make('span', { class: 'line' }, labelSpan(image.label || image.name), make('span', {}, `×\u2009${number}`)));
      return make('li', {}, link);
    });
    parts.push(section('Images with this code', more(containing.length, 'image on this page has it.', 'images on this page have it.'), make('ul', { class: 'tiles places' }, ...tiles)));
  }
  return parts;
}

const more = (number, one, many) => `${count(number)} ${number === 1 ? one : many}` + (number > MOST_LISTED ? ` The first ${MOST_LISTED}:` : '');

function codeFigures(code) {
  const rank = 1 + codes.filter((other) => other.uses > code.uses).length;
  const list = make('dl', { class: 'figures' }, figure(totalUses ? `uses, ${percent(code.uses / totalUses)} of all, rank ${count(rank)}` : 'uses', count(code.uses)));
  if (code.purity !== null) list.append(figure('purity: share of its most frequent label', percent(code.purity)));
  if (code.entropy !== null) list.append(figure(`entropy over positions, of ${Math.log2(N).toFixed(1)} at most`, code.entropy.toFixed(2), 'bits'));
  return list;
}

function codePatches(code, record) {
  const close = record.patches.every((patch) => patch[5] !== null);
  const words = close ? cosineWords(record.patches.map((patch) => patch[5])) : [];
  const tiles = record.patches.map(([, position, name, label, image], which) => {
    const canvas = make('canvas', { role: 'img' });
    drawPatch(canvas, code.index, which, 130);
    const known = image === null ? name : images[image].name;
    const description = [known, labelOf(label), place(position), close ? `closeness ${words[which]}` : null].filter(Boolean).join(', ');
    canvas.setAttribute('aria-label', description);
    const line = make('span', { class: 'line', 'aria-hidden': 'true' }, labelSpan(labelOf(label) || known || place(position)), close ? make('span', {}, words[which]) : null);
    const inside = [canvas, line];
    return make('li', { title: description }, image === null ? make('div', { class: 'still' }, ...inside) : make('a', { href: `#image=${image}&with=${code.index}` }, ...inside));
  });
  const text = `${record.patches.length === 1 ? 'The patch' : `${record.patches.length} patches`} with this code, framed${close ? ', closest first, with their closeness' : ''}.`;
  return section('Patches in their surroundings', text, make('ul', { class: 'tiles patches' }, ...tiles));
}

function codeLabels(code) {
  return section('Labels of its images', null, shareBars(code.labels));
}

function codePositions(code, record) {
  const levels = bytesOf(record.positions);
  const shareOf = (level) => (level / 255) * (record.most / code.uses);
  const map = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const best = levels.indexOf(255);
  const attributes = { viewBox: `0 0 ${GW} ${GH}`, class: 'heat', role: 'img', 'aria-label': `Positions: most often in ${place(best)}, ${percent(shareOf(255))} of its uses` };
  for (const [name, value] of Object.entries(attributes)) map.setAttribute(name, value);
  levels.forEach((level, position) => {
    const rect = document.createElementNS('http://www.w3.org/2000/svg', 'rect');
    const at = { x: (position % GW) + 0.03, y: Math.floor(position / GW) + 0.03, width: 0.94, height: 0.94, 'fill-opacity': (level / 255).toFixed(3) };
    for (const [name, value] of Object.entries(at)) rect.setAttribute(name, value);
    const title = document.createElementNS('http://www.w3.org/2000/svg', 'title');
    title.textContent = `${place(position)}: ${percent(shareOf(level))}`;
    rect.append(title);
    map.append(rect);
  });
  const scale = make('div', { class: 'scale', 'aria-hidden': 'true' }, '0', make('i'), `${percent(shareOf(255))} of its uses`);
  return section('Positions in the image', `Most often in ${place(best)}: ${percent(shareOf(255))} of its uses. A uniform distribution would be ${percent(1 / N)} at each position.`, map, scale);
}

/** Create a small link to a code, with a value beside its number; `spoken` is for screen readers. */
function codeTile(index, value, spoken) {
  const canvas = make('canvas', { 'aria-hidden': 'true' });
  if (detail(index).patches.length) drawTile(canvas, index, 90, 2);
  const label = codes[index].labels.length ? `, mostly ${codes[index].labels[0].name}` : '';
  return make('li', {}, make('a', { href: `#code=${index}`, 'aria-label': `Code ${index}, ${spoken}${label}`, title: `Code ${index}, ${spoken}${label}` }, canvas,
    make('span', { class: 'line' }, make('b', {}, String(index)), make('span', {}, value))));
}

/** List the codes of an image, the most used first. */
function imageCodes(image) {
  const sorted = [...usesOf(image)].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
  const tiles = sorted.slice(0, MOST_LISTED).map(([code, number]) => codeTile(code, `×\u2009${number}`, times(number)));
  return section('Its codes', more(sorted.length, `code on its ${N} patches.`, `different codes on its ${N} patches.`), make('ul', { class: 'tiles codes' }, ...tiles));
}
