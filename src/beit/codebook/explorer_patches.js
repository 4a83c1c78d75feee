// The panel of an image: its patches in the colours of tokens, of features, or of similarity to one.

const MOST_WORDS = 6; // cells in a row that have room for a cosine
const MOST_SIMILAR = 3; // patches listed below the image
// Kept from image to image.
let opacity = 55; // percent
let mode = 'tokens';

const modes = [['tokens', 'Tokens'], ['features', 'Features'], ['similarity', 'Similarity']];
const hints = {
  tokens: 'Each colour is a code; select a cell to see it.',
  features: 'The first three principal components of the features, of all images here; select a cell to see its code.',
};
const capital = (text) => text[0].toUpperCase() + text.slice(1);

/** Return the position that #image=…&patch=ROW,COLUMN names, -1 for none. */
function patchOf(image, text) {
  const match = /^(\d+),(\d+)$/.exec(text);
  if (!match || !image.ends) return -1;
  const [row, column] = [Number(match[1]) - 1, Number(match[2]) - 1];
  return row >= 0 && row < GH && column >= 0 && column < GW ? row * GW + column : -1;
}

/** Return a function of two patches of an image: the cosine of their features. */
function cosinesOf(image) {
  const steps = wordsOf(imageLines[image.index][1]);
  const [low, high] = image.ends;
  return (one, other) => {
    if (one === other) return 1;
    const [a, b] = one < other ? [one, other] : [other, one];
    return low + ((high - low) * steps[a * N - (a * (a + 1)) / 2 + b - a - 1]) / 65535;
  };
}

function imageContent(image, marked, patch) {
  if (patch >= 0) mode = 'similarity';
  else if (marked >= 0) mode = 'tokens';
  const picture = make('img', { src: imageLines[image.index][0], alt: image.label ? `${image.name}, ${image.label}` : image.name });
  const patches = patchMap(image, marked, patch);
  const whole = make('div', { class: 'whole' }, picture, patches.map);
  picture.addEventListener('load', () => {
    const grown = Math.max(1, 420 / Math.max(picture.naturalWidth, picture.naturalHeight));
    whole.style.width = `${Math.round(picture.naturalWidth * grown)}px`;
    picture.classList.toggle('pixels', grown > 3);
  });
  const slider = make('input', { type: 'range', id: 'opacity', min: 0, max: 100, step: 5, value: opacity });
  const applyOpacity = () => { opacity = slider.value; patches.map.style.setProperty('--opacity', opacity / 100); };
  slider.addEventListener('input', applyOpacity);
  applyOpacity();
  return [
    image.ends ? modeSwitch(patches.paint) : null,
    whole,
    patches.scale,
    make('div', { class: 'opacity' }, make('label', { for: 'opacity' }, 'Colours over the image'), slider),
    patches.note,
    patches.similar,
    imageCodes(image),
  ].filter(Boolean);
}

/** Create the choice of what the colours mean; `changed` is called after it. */
function modeSwitch(changed) {
  const choices = modes.map(([value, words]) => {
    const radio = make('input', { type: 'radio', name: 'mode', value, checked: value === mode });
    radio.addEventListener('change', () => { mode = value; changed(); });
    return make('label', {}, radio, make('span', {}, words));
  });
  return make('fieldset', { class: 'modes' }, make('legend', { class: 'unseen' }, 'Colours of the patches'), ...choices);
}

/** Create a grid of patches to lay over an image; each links to its code, or is compared with all. */
function patchMap(image, marked, patch) {
  const map = make('div', { class: 'tokens', role: 'grid', 'aria-label': `Patches of ${image.name}` });
  map.style.gridTemplate = `repeat(${GH}, 1fr) / repeat(${GW}, 1fr)`;
  const note = make('p', { class: 'note', 'aria-hidden': 'true' });
  const similar = make('p', { class: 'note', role: 'status' });
  const bar = make('i');
  const ends = [make('span'), make('span')];
  const scale = make('div', { class: 'scale', 'aria-hidden': 'true' }, ends[0], bar, ends[1]);
  bar.style.background = `linear-gradient(to right, ${[0, 1, 2, 3, 4].map((stop) => heatOf(stop / 4)).join(', ')})`;
  const cells = image.tokens.map(() => make('div', { role: 'gridcell', tabindex: -1 }, make('i'), make('b', { 'aria-hidden': 'true' })));
  for (let row = 0; row < GH; row++) map.append(make('div', { role: 'row' }, ...cells.slice(row * GW, (row + 1) * GW)));
  const cosineOf = image.ends ? cosinesOf(image) : null;
  let compared = patch >= 0 ? patch : Math.floor(GH / 2) * GW + Math.floor(GW / 2);
  let words = [];
  let active = patch >= 0 ? patch : Math.max(0, image.tokens.indexOf(marked));
  cells[active].tabIndex = 0;

  function paint() {
    const isCompared = mode === 'similarity' && cosineOf !== null;
    map.classList.toggle('compared', isCompared);
    scale.hidden = similar.hidden = !isCompared;
    if (isCompared) compare();
    cells.forEach((cell, position) => {
      const code = image.tokens[position];
      if (!isCompared) {
        cell.firstChild.style.background = mode === 'features' && image.colours ? hexOf(image.colours, position) : colourOf(code);
        cell.setAttribute('aria-label', `${place(position)}: code ${code}`);
        cell.lastChild.textContent = '';
        cell.removeAttribute('aria-selected');
      }
      cell.classList.toggle('same', isCompared ? position === compared : code === marked);
    });
    if (!isCompared) note.textContent = hints[image.colours ? mode : 'tokens'];
  }

  /** Colour the patches by their cosine with one, from the smallest to the largest of another. */
  function compare() {
    const values = image.tokens.map((_, position) => cosineOf(compared, position));
    const others = values.map((_, position) => position).filter((position) => position !== compared).sort((a, b) => values[b] - values[a]);
    words = cosineWords(values);
    const [low, high] = others.length ? [values[others[others.length - 1]], values[others[0]]] : [1, 1];
    cells.forEach((cell, position) => {
      cell.firstChild.style.background = heatOf(high > low ? clamp((values[position] - low) / (high - low), 0, 1) : 0.5);
      cell.lastChild.textContent = GW <= MOST_WORDS ? words[position] : '';
      cell.setAttribute('aria-label', position === compared ? `${place(position)}: compared with all` : `${place(position)}: cosine ${words[position]}`);
      cell.setAttribute('aria-selected', String(position === compared));
    });
    if (others.length) {
      ends[0].textContent = words[others[others.length - 1]];
      ends[1].textContent = words[others[0]];
    }
    const listed = others.slice(0, MOST_SIMILAR).map((position) => `${place(position)} (${words[position]})`);
    similar.textContent = `Most like ${place(compared)}: ${listed.join('; ')}.`;
    note.textContent = 'The cosine of the features with those of the framed patch; select another to compare it.';
  }

  function describe(position) {
    if (map.classList.contains('compared')) {
      note.textContent = `${capital(place(position))}: cosine ${words[position]} with ${place(compared)}`;
      return;
    }
    const code = codes[image.tokens[position]];
    const label = code.labels.length ? `, mostly ${code.labels[0].name} (${percent(code.labels[0].share)})` : '';
    note.textContent = `${capital(place(position))}: code ${code.index}${label}`;
    cells.forEach((cell, other) => cell.classList.toggle('same', image.tokens[other] === code.index));
  }

  function select(position) {
    if (!map.classList.contains('compared')) {
      location.hash = `#code=${image.tokens[position]}`;
      return;
    }
    compared = position;
    paint();
    const [row, column] = [Math.floor(position / GW) + 1, (position % GW) + 1];
    history.replaceState(null, '', `#image=${image.index}&patch=${row},${column}`);
  }

  const positionOf = (event) => cells.indexOf(event.target.closest('[role="gridcell"]'));
  map.addEventListener('pointerover', (event) => { if (positionOf(event) >= 0) describe(positionOf(event)); });
  map.addEventListener('focusin', (event) => describe(positionOf(event)));
  map.addEventListener('click', (event) => { if (positionOf(event) >= 0) select(positionOf(event)); });
  map.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' || event.key === ' ') {
      event.preventDefault();
      select(active);
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
  paint();
  return { map, note, similar, scale, paint };
}
