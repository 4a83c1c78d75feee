// The data of the page, its pictures, and the map on a canvas.

const summary = JSON.parse(byId('data-summary').textContent);
byId('data-summary').remove();
const sheetLines = takeLines('data-sheets');
const wordsOf = (encoded) => { const bytes = bytesOf(encoded); return new Uint16Array(bytes.buffer); };

const places = wordsOf(summary.places);
const near = wordsOf(summary.near);
const cosines = wordsOf(summary.cosines);
const number = summary.names.length;
const perImage = near.length / number;
const hasLabels = summary.labels !== null;
const labelOf = (index) => (hasLabels && summary.labels[index] >= 0 ? summary.label_names[summary.labels[index]] : '');
const images = summary.names.map((name, index) => ({
  index, name, label: labelOf(index), group: summary.groups[index],
  x: places[2 * index] / 65535, y: 1 - places[2 * index + 1] / 65535,
}));
const neighboursOf = (index) => Array.from({ length: perImage }, (_, rank) => ({
  image: images[near[index * perImage + rank]], cosine: cosines[index * perImage + rank] / 32767 - 1,
}));

const [CH, CW] = summary.cell;
const PER_SHEET = summary.across * summary.across;
const sheet = cached((which) => createImageBitmap(new Blob([bytesOf(sheetLines[which])], { type: 'image/webp' })), 400);
const cornerOf = (index) => { const at = index % PER_SHEET; return [(at % summary.across) * CW, Math.floor(at / summary.across) * CH]; };

/** Create a canvas with the picture of an image, `side` CSS pixels wide when it is drawn. */
function pictureOf(index, side) {
  const canvas = make('canvas', { 'aria-hidden': 'true' });
  canvas.width = 1;
  canvas.style.aspectRatio = `${CW} / ${CH}`;
  schedule(canvas, async () => {
    const bitmap = await sheet(Math.floor(index / PER_SHEET));
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    canvas.width = Math.round(side * ratio);
    canvas.height = Math.round((side * ratio * CH) / CW);
    const context = canvas.getContext('2d');
    context.imageSmoothingEnabled = CW > 40;
    context.imageSmoothingQuality = 'high';
    context.drawImage(bitmap, ...cornerOf(index), CW, CH, 0, 0, canvas.width, canvas.height);
  });
  return canvas;
}

/**
 * The map. `look()` returns { shown, colours, dots, open }: the images that match, the colour of
 * each image, whether to draw dots, and the open image or cluster.
 */
function imageMap(canvas, tip, look) {
  const context = canvas.getContext('2d');
  const view = { scale: 1, x: 0.5, y: 0.5 };
  let bitmaps = [];
  let current = null; // under the pointer, or reached by keys
  let waiting = false;
  let dragged = null;

  const unit = () => 0.94 * Math.min(canvas.clientWidth, canvas.clientHeight) * view.scale;
  // The longer side of the window shows more: places are spread along it.
  const stretch = () => Math.min(1.7, Math.max(1, canvas.clientWidth / Math.max(1, canvas.clientHeight)));
  const toScreen = (image) => [
    canvas.clientWidth / 2 + (image.x - view.x) * unit() * stretch(),
    canvas.clientHeight / 2 + (image.y - view.y) * unit(),
  ];
  const side = () => {
    const room = Math.sqrt((canvas.clientWidth * canvas.clientHeight) / number);
    return Math.min(Math.max(CW, 96), Math.max(8, 1.15 * room * Math.sqrt(view.scale) * Math.min(1.6, Math.sqrt(view.scale))));
  };

  function redraw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  }

  function draw() {
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width) return;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const style = getComputedStyle(document.documentElement);
    const [ink, accent] = ['--ink', '--accent'].map((name) => style.getPropertyValue(name));
    const { shown, colours, dots, open } = look();
    const size = side();
    const radius = Math.min(7, Math.max(2.2, size / 6));
    context.imageSmoothingEnabled = CW > 40 || size < CW;
    const front = open && open.kind === 'image' ? [open.item, ...neighboursOf(open.item.index).map(({ image }) => image)] : [];
    const inFront = new Set(front);
    const faded = (image) => !shown.has(image) || (open && open.kind === 'cluster' && image.group !== open.item.index);
    const one = (image, large) => {
      const [x, y] = toScreen(image);
      if (x < -size || y < -size || x > width + size || y > height + size) return;
      if (dots && !large) {
        context.fillStyle = colours[image.index];
        context.beginPath();
        context.arc(x, y, radius, 0, 7);
        context.fill();
        return;
      }
      const bitmap = bitmaps[Math.floor(image.index / PER_SHEET)];
      const wide = large ? Math.max(size, 40) : size;
      const high = (wide * CH) / CW;
      const edge = wide < 32 ? 1 : 2.5;
      context.fillStyle = colours[image.index];
      context.fillRect(x - wide / 2 - edge, y - high / 2 - edge, wide + 2 * edge, high + 2 * edge);
      if (bitmap) context.drawImage(bitmap, ...cornerOf(image.index), CW, CH, x - wide / 2, y - high / 2, wide, high);
    };
    const outline = (image, colour) => {
      const [x, y] = toScreen(image);
      const wide = Math.max(size, 40) + 8;
      context.lineWidth = 3;
      context.strokeStyle = colour;
      context.strokeRect(x - wide / 2, y - (wide * CH) / CW / 2, wide, (wide * CH) / CW);
    };
    context.globalAlpha = 0.12;
    for (const image of images) if (faded(image)) one(image);
    context.globalAlpha = front.length ? 0.35 : 1;
    for (const image of images) if (!faded(image) && !inFront.has(image)) one(image);
    context.globalAlpha = 1;
    if (front.length) {
      context.strokeStyle = accent;
      context.lineWidth = 1.5;
      for (const image of front.slice(1)) {
        context.beginPath();
        context.moveTo(...toScreen(front[0]));
        context.lineTo(...toScreen(image));
        context.stroke();
      }
      for (const image of front.slice(1).reverse()) one(image, true);
      one(front[0], true);
      outline(front[0], accent);
    }
    if (current) {
      one(current, true);
      outline(current, ink);
      const [x, y] = toScreen(current);
      tip.textContent = [current.name, current.label, `cluster ${current.group + 1}`].filter(Boolean).join(' · ');
      tip.style.left = `${Math.max(4, Math.min(x + 14, width - 330))}px`;
      tip.style.top = `${y + 44 > height ? y - 60 : y + 30}px`;
    }
    tip.hidden = !current;
  }

  function nearestTo(x, y, most) {
    let [best, found] = [most * most, null];
    const { shown } = look();
    for (const image of images) {
      if (!shown.has(image)) continue;
      const [a, b] = toScreen(image);
      const distance = (a - x) ** 2 + (b - y) ** 2;
      if (distance < best) [best, found] = [distance, image];
    }
    return found;
  }

  /** Move to the nearest image in a direction. */
  function move(dx, dy) {
    const { shown } = look();
    const from = current || nearestTo(canvas.clientWidth / 2, canvas.clientHeight / 2, 1e6);
    if (!from) return;
    let [best, found] = [Infinity, current ? null : from];
    const [x, y] = toScreen(from);
    if (current) {
      for (const image of images) {
        if (!shown.has(image) || image === from) continue;
        const [a, b] = toScreen(image);
        const along = (a - x) * dx + (b - y) * dy;
        const across = Math.abs((a - x) * dy) + Math.abs((b - y) * dx);
        if (along <= 0 || across > along) continue;
        if (along + 2 * across < best) [best, found] = [along + 2 * across, image];
      }
    }
    if (found) reveal(found, true);
  }

  function reveal(image, mark) {
    if (mark) current = image;
    const [x, y] = toScreen(image);
    if (x < 30 || y < 30 || x > canvas.clientWidth - 30 || y > canvas.clientHeight - 30) [view.x, view.y] = [image.x, image.y];
    redraw();
  }

  function zoom(by, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
    const before = view.scale;
    view.scale = clamp(view.scale * by, 1, 40);
    const kept = (1 / before - 1 / view.scale) / (unit() / view.scale);
    view.x += ((x - canvas.clientWidth / 2) * kept) / stretch();
    view.y += (y - canvas.clientHeight / 2) * kept;
    if (view.scale === 1) [view.x, view.y] = [0.5, 0.5];
    redraw();
  }

  const at = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  canvas.addEventListener('wheel', (event) => { event.preventDefault(); zoom(Math.exp(-event.deltaY / 400), ...at(event)); }, { passive: false });
  canvas.addEventListener('pointerdown', (event) => { dragged = { from: at(event), x: view.x, y: view.y, moved: false }; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener('pointermove', (event) => {
    const [x, y] = at(event);
    if (dragged) {
      const [dx, dy] = [x - dragged.from[0], y - dragged.from[1]];
      if (Math.hypot(dx, dy) > 4) dragged.moved = true;
      if (dragged.moved) [view.x, view.y] = [dragged.x - dx / unit() / stretch(), dragged.y - dy / unit()];
    }
    const found = nearestTo(x, y, Math.max(12, side() * 0.7));
    canvas.classList.toggle('over', Boolean(found));
    if (found !== current || dragged) { current = found; redraw(); }
  });
  canvas.addEventListener('pointerup', () => {
    const click = dragged && !dragged.moved;
    dragged = null;
    if (click && current) location.hash = `#image=${current.index}`;
  });
  canvas.addEventListener('pointerleave', () => { if (!dragged) { current = null; redraw(); } });
  canvas.addEventListener('blur', () => { current = null; redraw(); });
  canvas.addEventListener('keydown', (event) => {
    if (event.altKey || event.metaKey || event.ctrlKey) return;
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in steps) move(...steps[event.key]);
    else if (event.key === 'Enter' && current) location.hash = `#image=${current.index}`;
    else if (event.key === '+' || event.key === '=') zoom(1.5);
    else if (event.key === '-') zoom(1 / 1.5);
    else if (event.key === '0') zoom(0);
    else return;
    event.preventDefault();
  });
  new ResizeObserver(redraw).observe(canvas);
  Promise.all(sheetLines.map((_, which) => sheet(which))).then((all) => { bitmaps = all; redraw(); });
  return { redraw, zoom, reveal, get current() { return current; } };
}
