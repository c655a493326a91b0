// How large the two clips are, and whether they stand side by side or, on an upright phone, one above the other.

const GAP = 16; // pixels between the clips
const STACK_GAIN = 1.3; // stacked only where it makes the clips that much larger
const SMALL = 320; // narrower frames are pixel art: enlarged without smoothing

export function fit(stage, figures, width, height) {
  const box = stage.getBoundingClientRect();
  if (!box.width || !box.height || !width) return;
  const beside = Math.min((box.width - GAP) / 2 / width, box.height / height);
  const stacked = Math.min(box.width / width, (box.height - GAP) / 2 / height);
  const stack = stacked > beside * STACK_GAIN;
  let scale = stack ? stacked : beside;
  const pixels = scale * devicePixelRatio;
  const sharp = width < SMALL && scale > 1;
  if (sharp && pixels >= 3) scale = Math.floor(pixels) / devicePixelRatio; // whole pixels stay square
  stage.classList.toggle("stacked", stack);
  stage.closest("main, dialog").classList.toggle("stacked", stack);
  for (const figure of figures) {
    const canvas = figure.querySelector("canvas");
    canvas.style.width = `${Math.floor(width * scale)}px`;
    canvas.style.height = `${Math.floor(height * scale)}px`;
    canvas.classList.toggle("sharp", sharp);
  }
}

/** Lights up what was chosen: a side, both or none, and its button. */
export function flash([figures, button], choice, strength) {
  const sides = { left: [0], right: [1], equal: [0, 1], skip: [] }[choice];
  for (const element of [...sides.map((i) => figures[i]), button]) {
    if (element.classList.contains("flash")) {
      element.classList.remove("flash", "strong");
      void element.offsetWidth; // starts the animation anew; costs a layout
    }
    element.classList.add("flash", ...(strength === "strong" ? ["strong"] : []));
  }
}

/** Once the frame that is due has been drawn. */
export function afterFrame(act) {
  requestAnimationFrame(() => setTimeout(act, 0));
}
