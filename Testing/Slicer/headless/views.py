"""A slice view of Slicer without its widget: slice logic, render window and displayable managers, all real
VTK.
"""

import slicer
import vtk

SLICE_MANAGERS = [
    "vtkMRMLVolumeGlyphSliceDisplayableManager",
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLCrosshairDisplayableManager",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
    "vtkMRMLScalarBarDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLMarkupsDisplayableManager",
]


class SliceView:
    """The part of a qMRMLSliceWidget that is VTK: slice logic, render window, displayable managers."""

    def __init__(self, environment, sliceNode, size=(400, 400)):
        self.logic = logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLApplicationLogic(environment.appLogic)
        environment.sliceLogics.AddItem(logic)
        logic.SetMRMLScene(environment.scene)
        logic.SetSliceNode(sliceNode)
        self.sliceNode = sliceNode
        self.size = size
        self.window = None

    def build(self):
        self.renderer = vtk.vtkRenderer()
        self.renderer.GetActiveCamera().ParallelProjectionOn()
        self.window = window = vtk.vtkRenderWindow()
        window.SetOffScreenRendering(1)
        window.ShowWindowOff()
        window.SetMultiSamples(0)
        window.SetSize(*self.size)
        window.SetNumberOfLayers(2)
        window.SetAlphaBitPlanes(1)
        window.AddRenderer(self.renderer)
        overlay = vtk.vtkRenderer()
        overlay.SetLayer(1)
        overlay.GetActiveCamera().ParallelProjectionOn()
        window.AddRenderer(overlay)
        self.interactor = vtk.vtkRenderWindowInteractor()
        self.interactor.SetRenderWindow(window)
        self.interactor.SetInteractorStyle(vtk.vtkInteractorStyleUser())
        mapper = vtk.vtkImageMapper()
        mapper.SetColorWindow(255)
        mapper.SetColorLevel(127.5)
        self.actor = vtk.vtkActor2D()
        self.actor.SetMapper(mapper)
        self.actor.GetProperty().SetDisplayLocationToBackground()
        self.renderer.AddViewProp(self.actor)
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        for name in SLICE_MANAGERS:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        self.group = slicer.vtkMRMLDisplayableManagerGroup()
        self.group.Initialize(factory, self.renderer)
        self.group.SetMRMLDisplayableNode(self.sliceNode)
        self.logic.ResizeSliceNode(*self.size)

    def fit(self):
        self.logic.FitSliceToBackground()
        self.logic.SnapSliceOffsetToIJK()

    def render(self):
        if self.window is None:
            self.build()
        self.actor.GetMapper().SetInputConnection(self.logic.GetImageDataConnection())
        self.actor.SetVisibility(self.logic.GetImageDataConnection() is not None)
        self.window.Render()

    def grab(self, path):
        self.render()
        capture = vtk.vtkWindowToImageFilter()
        capture.SetInput(self.window)
        capture.ReadFrontBufferOff()
        writer = vtk.vtkPNGWriter()
        writer.SetFileName(path)
        writer.SetInputConnection(capture.GetOutputPort())
        writer.Write()

    # names of qMRMLSliceWidget
    def sliceLogic(self):
        return self.logic

    def mrmlSliceNode(self):
        return self.sliceNode
