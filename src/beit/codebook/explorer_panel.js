// The panel: a code, or an image with its tokens.

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
    const tiles = record.neighbours.map(([index, cosine]) => codeTile(index, cosine.toFixed(2), `cosine ${cosine.toFixed(2)}`));
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
  const tiles = record.patches.map(([, position, name, label, image, closeness], which) => {
    const canvas = make('canvas', { role: 'img' });
    drawPatch(canvas, code.index, which, 130);
    const known = image === null ? name : images[image].name;
    const description = [known, labelOf(label), place(position), closeness === null ? null : `closeness ${closeness.toFixed(2)}`].filter(Boolean).join(', ');
    canvas.setAttribute('aria-label', description);
    const line = make('span', { class: 'line', 'aria-hidden': 'true' }, labelSpan(labelOf(label) || known || place(position)), closeness === null ? null : make('span', {}, closeness.toFixed(2)));
    const inside = [canvas, line];
    return make('li', { title: description }, image === null ? make('div', { class: 'still' }, ...inside) : make('a', { href: `#image=${image}&with=${code.index}` }, ...inside));
  });
  const close = record.patches.some((patch) => patch[5] !== null);
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

function imageContent(image, marked) {
  const picture = make('img', { src: imageLines[image.index], alt: image.label ? `${image.name}, ${image.label}` : image.name });
  const tokens = tokenMap(image, marked);
  const whole = make('div', { class: 'whole' }, picture, tokens.map);
  picture.addEventListener('load', () => {
    const grown = Math.max(1, 420 / Math.max(picture.naturalWidth, picture.naturalHeight));
    whole.style.width = `${Math.round(picture.naturalWidth * grown)}px`;
    picture.classList.toggle('pixels', grown > 3);
  });
  const opacity = make('input', { type: 'range', id: 'opacity', min: 0, max: 100, step: 5, value: tokenOpacity });
  const applyOpacity = () => { tokenOpacity = opacity.value; tokens.map.style.setProperty('--opacity', opacity.value / 100); };
  opacity.addEventListener('input', applyOpacity);
  applyOpacity();
  const sorted = [...usesOf(image)].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
  const tiles = sorted.slice(0, MOST_LISTED).map(([code, number]) => codeTile(code, `×\u2009${number}`, times(number)));
  return [
    whole,
    make('div', { class: 'opacity' }, make('label', { for: 'opacity' }, 'Tokens over the image'), opacity),
    tokens.note,
    section('Its codes', more(sorted.length, `code on its ${N} patches.`, `different codes on its ${N} patches.`), make('ul', { class: 'tiles codes' }, ...tiles)),
  ];
}

let tokenOpacity = 55; // percent, kept from image to image

/** Create a grid of tokens to lay over an image; each links to its code. */
function tokenMap(image, marked) {
  const map = make('div', { class: 'tokens', role: 'grid', 'aria-label': `Tokens of ${image.name}` });
  map.style.gridTemplate = `repeat(${GH}, 1fr) / repeat(${GW}, 1fr)`;
  const note = make('p', { class: 'note', 'aria-hidden': 'true' }, 'Each colour is a code; select a cell to see it.');
  const cells = image.tokens.map((code, position) => {
    const colour = make('i');
    colour.style.background = colourOf(code);
    const cell = make('div', { role: 'gridcell', tabindex: -1, 'aria-label': `${place(position)}: code ${code}` }, colour);
    cell.classList.toggle('same', code === marked);
    return cell;
  });
  for (let row = 0; row < GH; row++) map.append(make('div', { role: 'row' }, ...cells.slice(row * GW, (row + 1) * GW)));
  let active = Math.max(0, image.tokens.indexOf(marked));
  cells[active].tabIndex = 0;

  function describe(position) {
    const code = codes[image.tokens[position]];
    const label = code.labels.length ? `, mostly ${code.labels[0].name} (${percent(code.labels[0].share)})` : '';
    const where = place(position);
    note.textContent = `${where[0].toUpperCase()}${where.slice(1)}: code ${code.index}${label}`;
    cells.forEach((cell, other) => cell.classList.toggle('same', image.tokens[other] === code.index));
  }
  const positionOf = (event) => cells.indexOf(event.target.closest('[role="gridcell"]'));
  map.addEventListener('pointerover', (event) => { if (positionOf(event) >= 0) describe(positionOf(event)); });
  map.addEventListener('focusin', (event) => describe(positionOf(event)));
  map.addEventListener('click', (event) => { if (positionOf(event) >= 0) location.hash = `#code=${image.tokens[positionOf(event)]}`; });
  map.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' || event.key === ' ') {
      event.preventDefault();
      location.hash = `#code=${image.tokens[active]}`;
      return;
    }
    const [row, column] = [Math.floor(active / GW), active % GW];
    const targets = { ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1], ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], Home: [row, 0], End: [row, GW - 1] };
    if (!(event.key in targets)) return;
    event.preventDefault();
    cells[active].tabIndex = -1;
    const [y, x] = targets[event.key];
    active = clamp(y, 0, GH - 1) * GW + clamp(x, 0, GW - 1);
    cells[active].tabIndex = 0;
    cells[active].focus();
  });
  return { map, note };
}
