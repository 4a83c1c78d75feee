// The data of the page: lines of text, decoded and drawn on canvases when they are shown.
const imageLines = takeLines('data-images').map((line) => line.split(' ')); // [picture, cosines]
const codeLines = takeLines('data-codes');
const summary = JSON.parse(byId('data-summary').textContent);
byId('data-summary').remove();

const [GH, GW] = summary.grid;
const N = GH * GW;
const labelOf = (index) => (index === null ? null : summary.labels[index]);
const hexOf = (colours, index) => '#' + colours.slice(6 * index, 6 * index + 6);
const colourOf = (code) => hexOf(summary.colours, code);
const heatOf = (share) => hexOf(summary.heat, Math.round(share * (summary.heat.length / 6 - 1)));

const wordsOf = (encoded) => new Uint16Array(bytesOf(encoded).buffer);
const mapPlaces = summary.map && wordsOf(summary.map.places);
const codes = summary.codes.map(([uses, purity, entropy, labels], index) => ({
  index, uses, purity, entropy, labels: labels.map(([label, share]) => ({ name: labelOf(label), share })),
}));
// Of features: a colour for each patch, and the lowest and highest cosine of two patches.
const images = summary.images.map(([name, label, tokens, colours, ends], index) => ({ index, name, label: labelOf(label), tokens, colours, ends }));
const [mapLine] = takeLines('data-map');
// The codes on the map, which get a place in [0, 1].
const mapped = !summary.map ? [] : summary.map.codes.map((index, at) => {
  const [x, y] = mapPlaces.slice(2 * at, 2 * at + 2);
  return Object.assign(codes[index], { x: x / 65535, y: 1 - y / 65535 });
});
const totalUses = codes.reduce((sum, code) => sum + code.uses, 0);
const hasLabels = codes.some((code) => code.purity !== null);

const times = (value) => (value === 1 ? 'once' : value === 2 ? 'twice' : count(value) + ' times');
const place = (position) => `row ${Math.floor(position / GW) + 1}, column ${(position % GW) + 1}`;

/** Format cosines with two to six decimals: enough to tell them from each other and from 1. */
function cosineWords(values) {
  const extent = Math.max(...values) - Math.min(...values);
  const belowOne = Math.min(1, ...values.map((value) => 1 - value).filter((rest) => rest > 1e-6));
  const decimals = Math.max(2, extent > 0 ? 1 + Math.ceil(-Math.log10(extent)) : 2, Math.ceil(-Math.log10(belowOne)));
  return values.map((value) => value.toFixed(Math.min(6, decimals)));
}

const detail = cached((index) => JSON.parse(codeLines[index]), 64);
// Sixteen pictures of side 48 are 0.15 MB of pixels, of side 96 0.6 MB.
const sheet = cached(
  (index) => createImageBitmap(new Blob([bytesOf(detail(index).sheet)], { type: 'image/webp' })),
  256,
);
const wholeImage = cached(async (index) => {
  const image = new Image();
  image.src = imageLines[index][0];
  await image.decode();
  return image;
}, 64);

/** Prepare a canvas for the pictures of a code, and call `draw` with them. */
function drawFromSheet(canvas, index, side, draw) {
  schedule(canvas, async () => {
    const bitmap = await sheet(index);
    const { cell, patches } = detail(index);
    const across = Math.ceil(Math.sqrt(patches.length)); // pictures in a row of the sheet
    const [context, size] = scaled(canvas, side);
    context.imageSmoothingEnabled = cell > 40;
    context.imageSmoothingQuality = 'high';
    const frameOf = (which, length) => summary.frames[patches[which][0]].map((edge) => (edge / 1000) * length);
    const cornerOf = (which) => [(which % across) * cell, Math.floor(which / across) * cell];
    draw({ bitmap, cell, number: patches.length, context, size, frameOf, cornerOf });
  });
}

/** Draw the closest patches of a code in a square, each with a small margin. */
function drawTile(canvas, index, side, most = 3) {
  drawFromSheet(canvas, index, side, ({ bitmap, cell, number, context, size, frameOf, cornerOf }) => {
    const across = Math.min(most, Math.floor(Math.sqrt(number)));
    const gap = Math.max(1, Math.round(size / 150));
    const edge = (step) => Math.round((step * (size + gap)) / across);
    for (let i = 0; i < across * across; i++) {
      const [top, left, bottom, right] = frameOf(i, cell);
      const [x, y] = cornerOf(i);
      const view = Math.min(cell, 1.9 * Math.max(bottom - top, right - left));
      const [column, row] = [i % across, Math.floor(i / across)];
      context.drawImage(bitmap, x + clamp((left + right - view) / 2, 0, cell - view), y + clamp((top + bottom - view) / 2, 0, cell - view), view, view,
        edge(column), edge(row), edge(column + 1) - edge(column) - gap, edge(row + 1) - edge(row) - gap);
    }
  });
}

/** Draw one patch in its surroundings, with a frame. */
function drawPatch(canvas, index, which, side) {
  drawFromSheet(canvas, index, side, ({ bitmap, cell, context, size, frameOf, cornerOf }) => {
    context.drawImage(bitmap, ...cornerOf(which), cell, cell, 0, 0, size, size);
    const [top, left, bottom, right] = frameOf(which, size);
    frame(context, left, top, right - left, bottom - top, size / side);
  });
}

/** Draw an image with a frame around each patch of a code. */
function drawPlaces(canvas, image, code, side) {
  schedule(canvas, async () => {
    const whole = await wholeImage(image.index);
    const [context, size] = scaled(canvas, side);
    const { naturalWidth: width, naturalHeight: height } = whole;
    const scale = size / Math.max(width, height);
    const [w, h] = [width * scale, height * scale];
    const [x, y] = [(size - w) / 2, (size - h) / 2];
    context.imageSmoothingEnabled = scale < 2;
    context.drawImage(whole, x, y, w, h);
    image.tokens.forEach((token, position) => {
      if (token !== code) return;
      frame(context, x + ((position % GW) * w) / GW, y + (Math.floor(position / GW) * h) / GH, w / GW, h / GH, size / side);
    });
  });
}

/** Draw a white frame with dark edges, visible on any picture, inside the given rectangle. */
function frame(context, x, y, width, height, dot) {
  for (const [colour, line] of [['#111', 4.5 * dot], ['#fff', 2.25 * dot]]) {
    const inset = 2.25 * dot;
    context.lineWidth = line;
    context.strokeStyle = colour;
    context.strokeRect(x + inset, y + inset, width - 2 * inset, height - 2 * inset);
  }
}
