// Small helpers to build the page: elements, numbers in words, thumbnails, the tip, and what screen readers hear.

const byId = (id) => document.getElementById(id);
const percent = (rate) =>
  rate > 0 && rate < 0.005 ? "< 1 %" : rate < 1 && rate > 0.995 ? "> 99 %" : `${Math.round(100 * rate)} %`;
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

/** An element with properties, attributes (names with a dash, and role), listeners (on...) and children. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role" || name === "scope") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const announce = (text) => {
  byId("live").textContent = text;
};

/** The colours of the theme in use, for canvases. */
function themeColours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["open", "odd", "fixed", "dot", "a", "b", "ink", "muted", "surface"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

/** Draws the thumbnails; a group's sprite is decoded when the first of its images is wanted. */
class Thumbnails {
  constructor(model) {
    this.model = model;
    this.sprites = new Map();
    this.place = new Int32Array(model.count); // within its group
    for (const images of model.members.values())
      images.forEach((image, place) => {
        this.place[image] = place;
      });
  }

  sprite(group) {
    if (!this.sprites.has(group)) {
      const picture = new Image();
      picture.src = this.model.sprites[group].uri;
      this.sprites.set(
        group,
        picture.decode().then(() => picture),
      );
    }
    return this.sprites.get(group);
  }

  /** A canvas with an image of the sample; it is decoration, the name beside it or on its button says what it is. */
  canvas(image, className = "thumbnail") {
    const [height, width] = this.model.thumbnail;
    const canvas = make("canvas", { className, width, height, "aria-hidden": "true" });
    if (Math.max(height, width) <= 64) canvas.classList.add("small-source");
    const group = this.model.group[image];
    const columns = this.model.sprites[group].columns;
    const [x, y] = [this.place[image] % columns, Math.floor(this.place[image] / columns)];
    this.sprite(group).then((picture) => {
      canvas.getContext("2d").drawImage(picture, x * width, y * height, width, height, 0, 0, width, height);
      canvas.dataset.drawn = "";
    });
    return canvas;
  }

  describe(image) {
    const { model } = this;
    const predicted = model.groupName(model.prediction[image]);
    const name = `${model.groupName(model.group[image])}, image ${model.index[image]}`;
    return model.isWrong(image) ? `${name}, wrongly predicted ${predicted}` : name;
  }

  /** A button that picks an image, with a caption if one is given. */
  button(image, pick, caption = null) {
    return make(
      "button",
      {
        type: "button",
        className: "pick",
        title: this.describe(image),
        "aria-label": caption ? `${this.describe(image)}: ${caption}` : this.describe(image),
        "data-image": image,
        onclick: () => pick(image),
      },
      this.canvas(image),
      this.model.isWrong(image) ? make("span", { className: "wrong", "aria-hidden": "true" }, "✗") : null,
      caption ? make("span", { className: "caption" }, caption) : null,
    );
  }
}

/** The tip beside a cell; screen readers hear the cell's own text instead. */
const tip = {
  show(text, x, y) {
    const element = byId("tip");
    element.textContent = text;
    element.hidden = false;
    const { width, height } = element.getBoundingClientRect();
    const left = Math.max(8, Math.min(x + 14, document.documentElement.clientWidth - width - 8));
    const above = y - height - 12;
    element.style.left = `${left}px`;
    element.style.top = `${above > 8 ? above : y + 22}px`;
  },
  hide() {
    byId("tip").hidden = true;
  },
};

/** Arrow keys move the focus within a group of buttons, of which one at a time is in the tab order. */
function roveFocus(container) {
  container.addEventListener("keydown", (event) => {
    const buttons = [...container.querySelectorAll("button")];
    const here = buttons.indexOf(document.activeElement);
    if (here < 0) return;
    const tops = buttons.map((button) => button.offsetTop);
    const perRow = Math.max(1, tops.filter((top) => top === tops[0]).length);
    const steps = {
      ArrowRight: 1,
      ArrowLeft: -1,
      ArrowDown: perRow,
      ArrowUp: -perRow,
      Home: -here,
      End: buttons.length - 1 - here,
    };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const next = buttons[here + steps[event.key]];
    if (!next) return;
    buttons[here].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

/** Of a group of buttons, leaves one in the tab order: the pressed one, or the first. */
function resetRoving(container) {
  const buttons = [...container.querySelectorAll("button")];
  const entry = buttons.find((button) => button.getAttribute("aria-pressed") === "true") ?? buttons[0];
  buttons.forEach((button) => {
    button.tabIndex = button === entry ? 0 : -1;
  });
}
