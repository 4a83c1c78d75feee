// Values of charts under the pointer or the arrow keys, and pictures enlarged by a click or Enter.
(() => {
  'use strict';
  const DOT = 3.5;
  const dialog = document.querySelector('dialog');
  const box = Object.assign(document.createElement('div'), { className: 'values' });
  let shown = null; // [svg, x of the shown points]

  const make = (name, attributes) => {
    const element = document.createElementNS('http://www.w3.org/2000/svg', name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };

  function hide() {
    box.remove();
    document.querySelectorAll('.pointed').forEach((element) => element.remove());
    shown = null;
  }

  /** Show the values at the x of a chart that is nearest to `near`, in units of the drawing. */
  function show(svg, near) {
    hide();
    const hover = JSON.parse(svg.dataset.hover);
    const all = hover.lines.flatMap(([, , points]) => points);
    if (!all.length) return;
    const [x, , words] = all.reduce((a, b) => (Math.abs(b[0] - near) < Math.abs(a[0] - near) ? b : a));
    const mark = make('g', { class: 'pointed' });
    mark.append(make('path', { d: `M${x} ${hover.top}V${hover.bottom}`, stroke: 'var(--faint)', 'stroke-dasharray': '2 2' }));
    box.replaceChildren(`${hover.x} ${words}`);
    for (const [name, colour, points] of hover.lines) {
      const point = points.find(([place]) => Math.abs(place - x) < 0.06);
      if (!point) continue;
      mark.append(make('circle', { cx: x, cy: point[1], r: DOT, fill: colour }));
      const row = document.createElement('div');
      const swatch = document.createElement('i');
      swatch.style.background = colour;
      row.append(swatch, `${name} `, Object.assign(document.createElement('b'), { textContent: point[3] }));
      box.append(row);
    }
    svg.append(mark);
    (svg.closest('dialog') || document.body).append(box);
    const edge = mark.getBoundingClientRect();
    const left = edge.right + 10 + box.offsetWidth > innerWidth ? edge.left - box.offsetWidth - 10 : edge.right + 10;
    box.style.left = `${Math.max(4, left)}px`;
    box.style.top = `${Math.max(4, Math.min(edge.top, innerHeight - box.offsetHeight - 4))}px`;
    shown = [svg, x];
  }

  function enlarge(picture) {
    hide();
    const copy = picture.cloneNode(true);
    copy.removeAttribute('tabindex');
    copy.querySelectorAll('.pointed').forEach((element) => element.remove());
    const drawing = copy.matches('img') ? copy : copy.querySelector('svg');
    const width = Number(drawing.getAttribute('width'));
    const height = Number(drawing.getAttribute('height'));
    const room = Math.min((0.92 * innerWidth) / width, (0.84 * innerHeight) / height);
    drawing.style.width = `${width * room}px`;
    const caption = picture.closest('figure').querySelector(':scope > figcaption');
    dialog.firstElementChild.replaceChildren(copy, ...(caption ? [caption.cloneNode(true)] : []));
    dialog.showModal();
  }

  document.addEventListener('pointermove', (event) => {
    const svg = event.target.closest && event.target.closest('svg[data-hover]');
    if (svg) show(svg, new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x);
    else if (shown) hide();
  });
  document.addEventListener('scroll', hide, { passive: true });
  document.addEventListener('focusout', hide);
  for (const picture of document.querySelectorAll('.picture')) {
    picture.tabIndex = 0;
    picture.setAttribute('aria-haspopup', 'dialog');
    picture.addEventListener('click', () => enlarge(picture));
    picture.addEventListener('keydown', (event) => {
      const svg = picture.querySelector('svg[data-hover]');
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === 'Enter' || event.key === ' ') enlarge(picture);
      else if (svg && step) {
        const places = JSON.parse(svg.dataset.hover).lines.flatMap(([, , points]) => points.map(([x]) => x));
        const sorted = [...new Set(places)].sort((a, b) => a - b);
        const here = shown && shown[0] === svg ? sorted.indexOf(shown[1]) : step > 0 ? -1 : sorted.length;
        show(svg, sorted[Math.max(0, Math.min(sorted.length - 1, here + step))]);
      } else return;
      event.preventDefault();
    });
  }
  window.addEventListener('beforeprint', () => document.querySelectorAll('details').forEach((part) => { part.open = true; }));
  dialog.addEventListener('click', () => dialog.close());
  dialog.addEventListener('close', () => { hide(); dialog.firstElementChild.replaceChildren(); });
})();
