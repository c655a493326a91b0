export class Browser {
  show() {}
  leave() {}
}
