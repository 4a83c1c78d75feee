// A gallery of any length; only the visible rows are in the document.

/**
 * Fill `root` (role grid) with tiles. `build(item, width)` makes a link, `least` is its smallest
 * width. Tab reaches one tile; the arrow, Home, End and Page keys move between tiles.
 */
function gallery(root, { least, lines, build }) {
  const GAP = 12;
  const OVERSCAN = 1.0; // window heights rendered above and below
  let items = [];
  let columns = 1;
  let width = 0;
  let rowHeight = 1;
  let active = 0;
  let chosen = null;
  const rows = new Map();

  const rowOf = (position) => Math.floor(position / columns);
  const numRows = () => Math.ceil(items.length / columns);

  function layout() {
    const room = root.clientWidth;
    if (!room) return;
    const narrow = window.innerWidth <= 704;
    columns = Math.max(narrow ? 3 : 1, Math.floor((room + GAP) / (least + GAP)));
    width = (room - (columns - 1) * GAP) / columns;
    const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
    rowHeight = Math.ceil(width + (lines * 1.25 + 0.3 + 1.05) * rem);
    root.style.height = `${numRows() * rowHeight}px`;
    root.setAttribute('aria-rowcount', numRows());
    root.setAttribute('aria-colcount', columns);
    const hadFocus = root.contains(document.activeElement);
    for (const row of rows.values()) row.remove();
    rows.clear();
    render();
    if (hadFocus) focus();
  }

  function render() {
    if (root.hidden || !items.length) return;
    const above = -root.getBoundingClientRect().top;
    const spare = OVERSCAN * window.innerHeight;
    const first = clamp(Math.floor((above - spare) / rowHeight), 0, numRows() - 1);
    const last = clamp(Math.ceil((above + window.innerHeight + spare) / rowHeight), first, numRows() - 1);
    const focused = rowOf(active);
    for (const [index, row] of rows) {
      if ((index < first || index > last) && index !== focused) {
        row.remove();
        rows.delete(index);
      }
    }
    for (let index = first; index <= last; index++) show(index);
    show(focused);
  }

  function show(index) {
    if (rows.has(index)) return;
    const row = make('div', { role: 'row', class: 'row', 'aria-rowindex': index + 1 });
    row.style.transform = `translateY(${index * rowHeight}px)`;
    row.style.gridTemplateColumns = `repeat(${columns}, ${width}px)`;
    row.style.columnGap = `${GAP}px`;
    items.slice(index * columns, (index + 1) * columns).forEach((item, column) => {
      const position = index * columns + column;
      const link = build(item, width);
      link.classList.add('tile');
      link.tabIndex = position === active ? 0 : -1;
      link.dataset.position = position;
      if (item === chosen) link.setAttribute('aria-current', 'true');
      row.append(make('div', { role: 'gridcell', 'aria-colindex': column + 1 }, link));
    });
    // Keep rows in order: screen readers read in document order.
    let after = null;
    for (const other of root.children) {
      if (Number(other.getAttribute('aria-rowindex')) > index + 1) { after = other; break; }
    }
    root.insertBefore(row, after);
    rows.set(index, row);
  }

  const tileAt = (position) => root.querySelector(`[data-position="${position}"]`);

  function activate(position) {
    const before = tileAt(active);
    if (before) before.tabIndex = -1;
    active = position;
    show(rowOf(active));
    tileAt(active).tabIndex = 0;
  }

  /** Scroll the row of a tile into view, below the sticky bar. */
  function reveal(position) {
    const top = root.getBoundingClientRect().top + rowOf(position) * rowHeight;
    const bar = byId('bar').getBoundingClientRect().height + 12;
    if (top < bar) window.scrollBy({ top: top - bar, behavior: 'instant' });
    else if (top + rowHeight > window.innerHeight) window.scrollBy({ top: top + rowHeight - window.innerHeight, behavior: 'instant' });
    render();
  }

  function focus() {
    if (!items.length) return;
    reveal(active);
    tileAt(active).focus({ preventScroll: true });
  }

  root.addEventListener('keydown', (event) => {
    if (event.altKey || event.metaKey || !items.length) return;
    const page = columns * Math.max(1, Math.floor(window.innerHeight / rowHeight) - 1);
    const start = active - (active % columns);
    const targets = {
      ArrowLeft: active - 1, ArrowRight: active + 1, ArrowUp: active - columns, ArrowDown: active + columns,
      PageUp: active - page, PageDown: active + page,
      Home: event.ctrlKey ? 0 : start, End: event.ctrlKey ? items.length - 1 : start + columns - 1,
    };
    if (!(event.key in targets)) return;
    event.preventDefault();
    let target = targets[event.key];
    if (event.key === 'ArrowUp' && target < 0) target = active;
    activate(clamp(target, 0, items.length - 1));
    focus();
  });
  root.addEventListener('focusin', (event) => {
    const tile = event.target.closest('[data-position]');
    if (tile) activate(Number(tile.dataset.position));
  });
  let scheduled = false;
  window.addEventListener('scroll', () => {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => { scheduled = false; render(); });
  }, { passive: true });
  let laidOut = 0;
  new ResizeObserver(() => {
    if (root.clientWidth === laidOut) return;
    laidOut = root.clientWidth;
    layout();
    if (chosen && items[active] === chosen) reveal(active);
  }).observe(root);

  return {
    get items() { return items; },
    fill(list) {
      items = list;
      active = Math.max(0, items.indexOf(chosen));
      layout();
    },
    /** Mark the open item; null for none. */
    choose(item) {
      chosen = item;
      for (const tile of root.querySelectorAll('[aria-current]')) tile.removeAttribute('aria-current');
      const position = items.indexOf(item);
      if (position < 0) return;
      if (root.hidden) { active = position; return; }
      activate(position);
      tileAt(position).setAttribute('aria-current', 'true');
      reveal(position);
    },
    layout,
    focus,
  };
}
