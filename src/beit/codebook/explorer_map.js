// The map of the codes: their mean patches or colours, with examples of the one that is pointed at.

/** Set up the map. `opened()` returns { kind, item } of the panel, or null. */
function codeMap(opened) {
  const canvas = byId('map-canvas');
  const colours = codes.map(({ index }) => colourOf(index));
  const across = Math.ceil(Math.sqrt(codes.length));
  const [high, wide] = summary.map ? summary.map.cell : [1, 1];
  let shown = new Set();
  let bitmap = null;

  function describe(code) {
    const text = [make('span', {}, `Code ${code.index}, used ${times(code.uses)}`)];
    if (code.labels.length) text.push(make('span', {}, `mostly ${code.labels[0].name} (${percent(code.labels[0].share)})`));
    if (!detail(code.index).patches.length) return text;
    const examples = make('canvas', { 'aria-hidden': 'true' });
    drawTile(examples, code.index, 132);
    return [...text, examples];
  }

  const map = itemMap(canvas, byId('tip'), {
    items: mapped,
    cell: [high, wide],
    size: 0.7,
    pictureOf: ({ index }) => bitmap && [bitmap, (index % across) * wide, Math.floor(index / across) * high],
    describe,
    address: ({ index }) => `#code=${index}`,
    look() {
      const { kind, item } = opened() || {};
      const open = kind === 'code' && item.x !== undefined;
      const near = open ? detail(item.index).neighbours.map(([index]) => codes[index]).filter((code) => code.x !== undefined) : [];
      return { shown, colours, dots: byId('drawn').value === 'colours', faded: () => false, front: open ? [item, ...near] : [] };
    },
  });
  if (mapped.length) {
    const blob = new Blob([bytesOf(mapLine)], { type: 'image/webp' });
    createImageBitmap(blob).then((sheet) => { bitmap = sheet; map.redraw(); });
  }

  return {
    get items() { return [...shown]; },
    fill(list) { shown = new Set(list.filter((code) => code.x !== undefined)); map.redraw(); },
    choose(code) {
      if (code && code.x !== undefined) map.reveal(code, false);
      map.redraw();
    },
    layout: map.redraw,
    focus() { canvas.focus({ preventScroll: true }); },
  };
}
