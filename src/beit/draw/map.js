// A map of things that have a place, on a canvas: pictures or dots, to move over and to zoom into.

/**
 * Draw `items` [{ index, x, y }], places in [0, 1], on a canvas. `cell` is [height, width] of a
 * picture; with `size` 1 all pictures together have the area of the canvas. `pictureOf(item)` returns
 * [bitmap, x, y] or null; `describe(item)` what the tip shows; `address(item)` where a click leads.
 * `look()` returns { shown, colours, dots, faded, front }: the items that match, colours by index,
 * whether to draw dots, a test of further faded items, and the open item followed by those it is
 * connected with.
 */
function itemMap(canvas, tip, { items, cell: [CH, CW], size: relative, pictureOf, describe, address, look }) {
  const behind = document.createElement('canvas'); // all items, drawn again when these change
  const view = { scale: 1, x: 0.5, y: 0.5 };
  let described = null; // what the tip shows
  let current = null; // under the pointer, or reached by keys
  let waiting = false;
  let stale = true;
  let dragged = null;

  // The longer side of the window shows more: places are spread along it.
  const stretch = () => Math.min(1.7, Math.max(1, canvas.clientWidth / Math.max(1, canvas.clientHeight)));
  const side = (scale = view.scale) => {
    const room = Math.sqrt((canvas.clientWidth * canvas.clientHeight) / items.length);
    return Math.min(Math.max(CW, 96), Math.max(8, relative * room * Math.sqrt(scale) * Math.min(1.6, Math.sqrt(scale))));
  };
  // The outermost pictures lie inside the canvas.
  const unit = () => {
    const room = Math.min(canvas.clientWidth, canvas.clientHeight);
    return Math.max(0.5 * room, Math.min(0.94 * room, room - side(1) * Math.max(1, CH / CW))) * view.scale;
  };
  /** Return a function from an item to its place on the canvas as it is now. */
  function placing() {
    const [width, height, down] = [canvas.clientWidth, canvas.clientHeight, unit()];
    const across = down * stretch();
    return (item) => [width / 2 + (item.x - view.x) * across, height / 2 + (item.y - view.y) * down];
  }

  /** Draw in the next frame: all, or only what is current. */
  function redraw() {
    stale = true;
    point();
  }
  function point() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  }

  function draw() {
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    const [width, height, size] = [canvas.clientWidth, canvas.clientHeight, side()];
    if (!width) return;
    const toScreen = placing();
    const { shown, colours, dots, faded: alsoFaded, front } = look();
    const radius = Math.min(7, Math.max(2.2, size / 6));
    const one = (context, item, large) => {
      const [x, y] = toScreen(item);
      if (x < -size || y < -size || x > width + size || y > height + size) return;
      context.fillStyle = colours[item.index];
      if (dots && !large) {
        context.beginPath();
        context.arc(x, y, radius, 0, 7);
        context.fill();
        return;
      }
      const picture = pictureOf(item);
      const wide = large ? Math.max(size, 40) : size;
      const high = (wide * CH) / CW;
      const edge = wide < 32 ? 1 : 2.5;
      context.fillRect(x - wide / 2 - edge, y - high / 2 - edge, wide + 2 * edge, high + 2 * edge);
      if (picture) context.drawImage(...picture, CW, CH, x - wide / 2, y - high / 2, wide, high);
    };
    const prepare = (target) => {
      [target.width, target.height] = [Math.round(width * ratio), Math.round(height * ratio)];
      const context = target.getContext('2d');
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.imageSmoothingEnabled = CW > 40 || size < CW;
      return context;
    };
    if (stale) {
      const context = prepare(behind);
      const inFront = new Set(front);
      const faded = (item) => !shown.has(item) || alsoFaded(item);
      context.globalAlpha = 0.12;
      for (const item of items) if (faded(item)) one(context, item);
      context.globalAlpha = front.length ? 0.35 : 1;
      for (const item of items) if (!faded(item) && !inFront.has(item)) one(context, item);
      stale = false;
    }
    const style = getComputedStyle(document.documentElement);
    const [ink, accent] = ['--ink', '--accent'].map((name) => style.getPropertyValue(name));
    const context = prepare(canvas);
    context.drawImage(behind, 0, 0, width, height);
    const outline = (item, colour) => {
      const [x, y] = toScreen(item);
      const wide = Math.max(size, 40) + 8;
      context.lineWidth = 3;
      context.strokeStyle = colour;
      context.strokeRect(x - wide / 2, y - (wide * CH) / CW / 2, wide, (wide * CH) / CW);
    };
    if (front.length) {
      context.strokeStyle = accent;
      context.lineWidth = 1.5;
      for (const item of front.slice(1)) {
        context.beginPath();
        context.moveTo(...toScreen(front[0]));
        context.lineTo(...toScreen(item));
        context.stroke();
      }
      for (const item of front.slice(1).reverse()) one(context, item, true);
      one(context, front[0], true);
      outline(front[0], accent);
    }
    if (current) {
      one(context, current, true);
      outline(current, ink);
      const [x, y] = toScreen(current);
      if (described !== current) tip.replaceChildren(...describe(current));
      described = current;
      tip.hidden = false;
      const [across, down] = [tip.offsetWidth, tip.offsetHeight];
      tip.style.left = `${clamp(x + 14, 4, Math.max(4, width - across - 4))}px`;
      tip.style.top = `${y + 34 + down > height ? y - 30 - down : y + 30}px`;
    }
    tip.hidden = !current;
  }

  function nearestTo(x, y, most) {
    let [best, found] = [most * most, null];
    const toScreen = placing();
    const { shown } = look();
    for (const item of items) {
      if (!shown.has(item)) continue;
      const [a, b] = toScreen(item);
      const distance = (a - x) ** 2 + (b - y) ** 2;
      if (distance < best) [best, found] = [distance, item];
    }
    return found;
  }

  /** Move to the nearest item in a direction. */
  function move(dx, dy) {
    const toScreen = placing();
    const { shown } = look();
    const from = current || nearestTo(canvas.clientWidth / 2, canvas.clientHeight / 2, 1e6);
    if (!from) return;
    let [best, found] = [Infinity, current ? null : from];
    const [x, y] = toScreen(from);
    if (current) {
      for (const item of items) {
        if (!shown.has(item) || item === from) continue;
        const [a, b] = toScreen(item);
        const along = (a - x) * dx + (b - y) * dy;
        const across = Math.abs((a - x) * dy) + Math.abs((b - y) * dx);
        if (along <= 0 || across > along) continue;
        if (along + 2 * across < best) [best, found] = [along + 2 * across, item];
      }
    }
    if (found) reveal(found, true);
  }

  function reveal(item, mark) {
    if (mark) current = item;
    if (!canvas.clientWidth) return;
    const [x, y] = placing()(item);
    if (x < 30 || y < 30 || x > canvas.clientWidth - 30 || y > canvas.clientHeight - 30) {
      [view.x, view.y] = [item.x, item.y];
      stale = true;
    }
    point();
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
    if (dragged && dragged.moved) stale = true;
    if (found !== current || dragged) { current = found; point(); }
  });
  canvas.addEventListener('pointerup', () => {
    const click = dragged && !dragged.moved;
    dragged = null;
    if (click && current) location.hash = address(current);
  });
  canvas.addEventListener('pointerleave', () => { if (!dragged) { current = null; point(); } });
  canvas.addEventListener('blur', () => { current = null; point(); });
  canvas.addEventListener('keydown', (event) => {
    if (event.altKey || event.metaKey || event.ctrlKey) return;
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in steps) move(...steps[event.key]);
    else if (event.key === 'Enter' && current) location.hash = address(current);
    else if (event.key === '+' || event.key === '=') zoom(1.5);
    else if (event.key === '-') zoom(1 / 1.5);
    else if (event.key === '0') zoom(0);
    else return;
    event.preventDefault();
  });
  byId('nearer').addEventListener('click', () => zoom(1.6));
  byId('farther').addEventListener('click', () => zoom(1 / 1.6));
  byId('whole').addEventListener('click', () => zoom(0));
  byId('scheme').addEventListener('click', redraw);
  window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);
  new ResizeObserver(redraw).observe(canvas);
  return { redraw, reveal };
}
