// Plays the two clips of a pair from one clock: whatever happens, both canvases show the same frame.

const HOLD_SECONDS = 0.7; // the last frame stays a moment before the clips start over
const LARGEST_TICK = 0.1; // seconds; after a pause of the browser the clips go on where they were

export class Player {
  #sides;
  #onFrame;
  #position = 0; // in frames; past the last one it counts the hold
  #before = null;
  #ticking = false;

  frame = -1;
  frames = 1;
  fps = 30;
  speed = 1;
  playing = true;
  loops = 0;
  restarts = 0; // by hand
  pauses = 0;

  /** canvases: [left, right]; onFrame(frame, [leftEnded, rightEnded]) is called whenever the frame changes. */
  constructor(canvases, onFrame) {
    this.#sides = canvases.map((canvas) => ({ canvas, context: canvas.getContext("2d"), clip: null, sheet: null }));
    this.#onFrame = onFrame;
  }

  /** Shows a pair from its first frame, drawn before this returns. */
  show(pair, sheets) {
    [pair.left, pair.right].forEach((clip, i) => {
      const side = this.#sides[i];
      side.clip = clip;
      side.sheet = sheets[i];
      if (side.canvas.width !== clip.width || side.canvas.height !== clip.height) {
        side.canvas.width = clip.width;
        side.canvas.height = clip.height;
      }
    });
    this.frames = Math.max(pair.left.frames, pair.right.frames);
    this.fps = pair.left.fps;
    this.loops = this.restarts = this.pauses = 0;
    this.playing = true;
    this.#begin();
    if (!this.#ticking) {
      this.#ticking = true;
      requestAnimationFrame((now) => this.#tick(now));
    }
  }

  clear() {
    for (const side of this.#sides) {
      side.sheet = null;
      side.context.clearRect(0, 0, side.canvas.width, side.canvas.height);
    }
    this.frame = -1;
  }

  restart() {
    this.restarts += 1;
    this.#begin();
  }

  #begin() {
    this.#position = 0;
    this.#before = null;
    this.#draw(true);
  }

  seek(frame) {
    this.#position = Math.min(Math.max(frame, 0), this.frames - 1);
    this.#draw();
  }

  /** One frame on or back, paused. */
  step(by) {
    this.pause();
    this.seek(this.frame + by);
  }

  pause() {
    if (this.playing) this.pauses += 1;
    this.playing = false;
  }

  toggle() {
    if (this.playing) this.pause();
    else this.playing = true;
  }

  #tick(now) {
    this.#ticking = this.#sides[0].sheet !== null; // an empty page leaves the processor to the training
    if (!this.#ticking) return;
    requestAnimationFrame((next) => this.#tick(next));
    const passed = this.#before === null ? 0 : Math.min((now - this.#before) / 1000, LARGEST_TICK);
    this.#before = now;
    if (!this.playing) return;
    this.#position += passed * this.fps * this.speed;
    if (this.#position >= this.frames + HOLD_SECONDS * this.fps) {
      this.#position = 0;
      this.loops += 1;
    }
    this.#draw();
  }

  #draw(always = false) {
    const frame = Math.min(Math.floor(this.#position), this.frames - 1);
    if ((frame === this.frame && !always) || !this.#sides[0].sheet) return;
    this.frame = frame;
    const ended = this.#sides.map(({ canvas, context, clip, sheet }) => {
      const i = Math.min(frame, clip.frames - 1);
      const x = (i % clip.columns) * clip.width;
      const y = Math.floor(i / clip.columns) * clip.height;
      context.drawImage(sheet, x, y, clip.width, clip.height, 0, 0, clip.width, clip.height);
      canvas.dataset.frame = frame;
      return clip.ended_frame !== null && i >= clip.ended_frame;
    });
    this.#onFrame(frame, ended);
  }
}
