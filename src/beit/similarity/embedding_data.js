// The data of the page, and its pictures.

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
